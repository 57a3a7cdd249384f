"""What ends a job before its time, and what becomes of it: preemption and time limits are gone on from, cancellation is not."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from slurm_lab import Job, Lab
from tiny_run import assert_curves_are_metrics

from mres.cluster.jobs import read

TWO = ("--nodes", "2", "--tasks-per-node", "1", "--cpus-per-task", "1")
ONE = ("--nodes", "1", "--tasks-per-node", "1", "--cpus-per-task", "1")
Losses = Callable[[int], list[dict]]


def events(job: Job) -> list[str]:
    """Of the run: the names of its jobs' events."""
    return [event.event for event in read(job.run_dir)]


def reasons(job: Job) -> list[str]:
    return [event.reason for event in read(job.run_dir) if event.event == "requeued"]


def preempt_and_wait(job: Job, restarts: int) -> None:
    job.preempt()
    job.until(lambda: events(job).count("requeued") == restarts, f"requeue {restarts}")


def preempted_twice(lab: Lab, config: Path, undisturbed: Losses) -> None:
    job = lab.submit(config, *TWO, "run.name=lab")
    job.wait_for_step(7)
    preempt_and_wait(job, 1)
    saved = read(job.run_dir)[-1].step
    assert saved >= 7
    job.wait_for_step(saved + 6)
    preempt_and_wait(job, 2)
    assert job.wait("COMPLETED", "FAILED") == "COMPLETED", job.log
    assert job.losses() == undisturbed(2)
    assert events(job) == ["submitted", *["started", "requeued"] * 2, "started", "ended"]
    assert reasons(job) == ["preempted", "preempted"]
    assert "Traceback" not in job.log
    assert len(list((job.run_dir / "tensorboard").iterdir())) == 3, "a file for each start"
    assert_curves_are_metrics(job.run_dir)


@pytest.mark.exhaustive
def test_preempted_twice_it_ends_as_if_undisturbed(lab: Lab, lab_config: Path, undisturbed: Losses) -> None:
    preempted_twice(lab, lab_config, undisturbed)


@pytest.mark.exhaustive
def test_so_does_one_that_is_preempted_by_sigterm_alone(
    lab_with: Callable[..., Lab], lab_config: Path, undisturbed: Losses
) -> None:
    preempted_twice(lab_with(user_signal=False), lab_config, undisturbed)


@pytest.mark.exhaustive
def test_a_signal_before_training_has_begun_costs_nothing(lab: Lab, lab_config: Path, undisturbed: Losses) -> None:
    job = lab.submit(lab_config, *TWO, "run.name=lab")
    job.until(lambda: "srun" in job.log, "the tasks' start")
    preempt_and_wait(job, 1)
    assert reasons(job) == ["preempted"]
    assert job.wait("COMPLETED", "FAILED") == "COMPLETED", job.log
    assert job.losses() == undisturbed(2)


def test_scancel_saves_and_cancels(lab: Lab, lab_config: Path) -> None:
    job = lab.submit(lab_config, *TWO, "run.name=lab")
    job.wait_for_step(3)
    lab.ask("scancel", job.number)
    job.until(lambda: "cancelled" in events(job), "what the controller says", may_end=("CANCELLED",))
    job.wait("CANCELLED")
    reached = read(job.run_dir)[-1].step
    assert reached >= 3
    assert max(job.steps) == reached
    assert events(job) == ["submitted", "started", "cancelled"]
    assert job.facts["Restarts"] == "0"


def test_scancel_before_training_has_begun_cancels(lab: Lab, lab_config: Path) -> None:
    job = lab.submit(lab_config, *TWO, "run.name=lab")
    job.until(lambda: "srun" in job.log, "the tasks' start")
    lab.ask("scancel", job.number)
    job.wait("CANCELLED")
    assert job.facts["Restarts"] == "0"
    assert events(job) == ["submitted", "started", "cancelled"]


@pytest.mark.exhaustive
def test_a_time_limit_is_gone_on_from(lab: Lab, lab_config: Path, undisturbed: Losses) -> None:
    job = lab.submit(lab_config, *TWO, "--time", "60", "--signal-delay", "60", "--env", "LAB_PACE_S=3", "run.name=lab")
    job.wait_for_step(4)
    ran_min = (time.time() - read(job.run_dir)[-1].time) / 60
    lab.ask("scontrol", "update", f"JobId={job.number}", f"TimeLimit={int(ran_min) + 2}")
    job.until(lambda: "requeued" in events(job), "the requeue")
    lab.ask("scontrol", "update", f"JobId={job.number}", "TimeLimit=60")
    (reason,) = reasons(job)
    assert reason.startswith(
        "its time limit is"
    )  # near, or over where SLURM has not looked for jobs to warn in between
    assert job.wait("COMPLETED", "FAILED") == "COMPLETED", job.log
    assert job.losses() == undisturbed(2)


@pytest.mark.exhaustive
def test_one_that_may_not_be_requeued_ends_with_75(lab: Lab, lab_config: Path) -> None:
    job = lab.submit(lab_config, *TWO, "--max-requeues", "0", "--time", "10", "run.name=lab", "train.steps=500")
    job.wait_for_step(2)
    lab.ask("scancel", "--signal=USR2", job.number)
    job.wait("FAILED")
    assert job.facts["ExitCode"] == "75:0"
    assert events(job) == ["submitted", "started", "ended"]
    assert "asked to stop by a signal" in job.log


@pytest.mark.exhaustive
def test_in_an_array_one_member_is_cancelled_and_another_requeued(lab: Lab, lab_config: Path) -> None:
    array = lab.submit(lab_config, *ONE, "--sweep", "run.seed=0,1", "run.name=lab", "train.steps=40")
    folders = [path.parent for path in sorted(array.run_dir.glob("*/jobs.jsonl"))]
    first, second = (Job(lab, read(folder)[0].job, folder) for folder in folders)
    assert {first.number, second.number} == {f"{array.number}_0", f"{array.number}_1"}
    for member in (first, second):
        member.wait_for_step(3)
    lab.ask("scancel", first.number)
    first.until(lambda: "cancelled" in events(first), "what the controller says", may_end=("CANCELLED",))
    assert read(first.run_dir)[-1].step >= 3
    lab.ask("scancel", "--signal=TERM", second.number)
    second.until(lambda: "requeued" in events(second), "the requeue")
    assert second.wait("COMPLETED", "FAILED") == "COMPLETED", second.log
    assert events(second) == ["submitted", "started", "requeued", "started", "ended"]
    assert first.state == "CANCELLED"
