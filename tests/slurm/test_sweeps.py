"""Sweeps as job arrays on a real SLURM: members fail, are preempted and cancelled each by itself, and the same command
submits what is left; what status, logs and cancel say of them."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import ROOT, command
from slurm_lab import PATIENCE_S, SUBMIT, Job, Lab

GOOD, BAD, OTHER = "lr-2e-3", "lr-1e30", "lr-1e-3"  # the first one's config is that of `undisturbed`
SWEEP = (
    *("--nodes", "1", "--tasks-per-node", "1", "--cpus-per-task", "1", "--sbatch", "exclusive", "run.name=rates"),
    *("--sweep", "optim.lr=2e-3,1e30,1e-3"),
)


def members(sweep: Job) -> dict[str, Job]:
    return {
        name: Job(sweep.lab, f"{sweep.number}_{number}", sweep.run_dir / name)
        for number, name in enumerate((GOOD, BAD, OTHER))
    }


def told(sweep: Job, *words: str) -> str:
    """What a command says of the sweep."""
    done = command(SUBMIT, *words, folder=sweep.run_dir.parents[1], environ=sweep.lab.environ)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def states(sweep: Job) -> dict[str, list[str]]:
    """By member: state, job, restarts."""
    rows = told(sweep, "status", "runs/rates").splitlines()[1:-1]
    return {row.split()[0]: row.split()[1:4] for row in rows}


@pytest.mark.exhaustive
def test_members_fail_come_back_and_are_cancelled_each_by_itself(
    lab: Lab, lab_config: Path, undisturbed: Callable[[int], list[dict]]
) -> None:
    sweep = lab.submit(lab_config, *SWEEP)
    first = members(sweep)
    follow = [sys.executable, ROOT / SUBMIT, "logs", "-f", first[GOOD].run_dir]
    with subprocess.Popen(follow, env=lab.environ, stdout=subprocess.PIPE, text=True) as follower:
        first[GOOD].wait_for_step(6)
        first[GOOD].preempt()
        first[OTHER].wait_for_step(6)
        said = told(sweep, "cancel", f"runs/rates/{OTHER}")
        assert re.search(r"cancelled; saved up to step ([6-9]|1\d|2\d)\b", said)
        assert first[OTHER].wait("CANCELLED", "COMPLETED", "FAILED") == "CANCELLED"
        assert first[BAD].wait("FAILED", "COMPLETED") == "FAILED"
        assert first[GOOD].wait("COMPLETED", "FAILED", "CANCELLED") == "COMPLETED", first[GOOD].log
        log, _ = follower.communicate(timeout=PATIENCE_S)
        assert follower.returncode == 0
    assert first[GOOD].losses() == undisturbed(1)
    assert "preempted" in log
    assert "done: 30 steps" in log
    assert states(sweep) == {
        GOOD: ["done", first[GOOD].number, "1"],
        BAD: ["failed", first[BAD].number, "0"],
        OTHER: ["cancelled", first[OTHER].number, "0"],
    }

    again = lab.submit(lab_config, *SWEEP)
    left = members(again)
    assert lab.ask("squeue", "-h", "-r", "-o", "%i").split() == [left[BAD].number, left[OTHER].number]
    told(again, "cancel", "runs/rates")
    assert lab.ask("squeue", "-h", "-t", "PENDING,RUNNING") == ""
    assert [state for state, *_ in states(again).values()] == ["done", "cancelled", "cancelled"]


@pytest.mark.exhaustive
def test_a_queued_member_is_cancelled_and_nothing_takes_its_place(lab: Lab, lab_config: Path) -> None:
    """At most one at a time; the whole sweep is cancelled, those that wait first."""
    sweep = lab.submit(lab_config, "--array-parallelism", "1", *SWEEP)
    its = members(sweep)
    its[GOOD].wait_for_step(2)
    assert states(sweep)[OTHER][0] == "pending"
    said = told(sweep, "cancel", "runs/rates")
    assert {state for state, *_ in states(sweep).values()} == {"cancelled"}
    assert len(re.findall("taken out of the queue", said)) == 2
    assert max(its[GOOD].steps) == int(re.search(r"saved up to step (\d+)", said)[1])  # type: ignore[index]
    assert not its[OTHER].steps


@pytest.mark.exhaustive
def test_a_job_that_has_just_begun_is_cancelled(lab: Lab, lab_config: Path) -> None:
    """Whatever has started by then: the batch script, the tasks, training."""
    job = lab.submit(lab_config, *SWEEP[:-2])
    job.wait("RUNNING")
    told(job, "cancel", "runs/rates")
    assert told(job, "status", "runs/rates").startswith("runs/rates: cancelled")
    assert job.wait("CANCELLED", "COMPLETED", "FAILED", "PENDING") == "CANCELLED"


def test_nothing_is_queued_where_one_member_is_wrong(lab: Lab, lab_config: Path) -> None:
    words = [*SWEEP[:-1], "data.train=nowhere,/also/nowhere"]
    done = command(SUBMIT, "--config", lab_config, *words, folder=lab_config.parent, environ=lab.environ)
    assert done.returncode == 2
    assert "nowhere" in done.stderr
    assert lab.ask("squeue", "-h") == ""
    assert not (lab_config.parent / "runs").exists()
