"""Ranks that die and machines that are lost: named, and training goes on from the newest checkpoint to the undisturbed end.

SlurmdTimeout is SLURM's default of 300 seconds: that SLURM itself notices a lost node is not waited for.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from commands import command
from slurm_lab import STEPS, SUBMIT, Job, Lab
from slurm_lab import lab_config as lab_config_of

from mres.cluster import jobs, nodes

RANKS = ("--nodes", "2", "--tasks-per-node", "1", "--cpus-per-task", "1")
Undisturbed = Callable[[int], list[dict]]


def events(job: Job, *names: str) -> list[jobs.Event]:
    return [event for event in jobs.read(job.run_dir) if event.event in names]


def goes_on(job: Job, fault: Callable[[], object], times: Callable[[str], None]) -> jobs.Event:
    """At step 8 the fault comes; what the controller made of it, and how soon, which is printed."""
    job.wait_for_step(8)
    fault()
    since = time.time()
    again = job.until(lambda: events(job, "restarted", "requeued"), "the fault is noticed")[0]
    job = replace(job, number=again.job)
    job.until(lambda: any(beat.step > again.step and beat.started > again.time for beat in job.beats.values()), "steps")
    times(f"named after {again.time - since:.1f} s, training again after {time.time() - since:.1f} s")
    assert job.wait("COMPLETED", "FAILED") == "COMPLETED", job.log
    return again


@pytest.fixture
def times(capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> Callable[[str], None]:
    def told(text: str) -> None:
        with capsys.disabled():
            print(f"\n{request.node.name}: {text}")

    return told


@pytest.mark.exhaustive
def test_killed_rank(lab: Lab, lab_config: Path, undisturbed: Undisturbed, times: Callable[[str], None]) -> None:
    job = lab.submit(lab_config, *RANKS, "run.name=lab")
    again = goes_on(job, lambda: job.kill_rank(1), times)
    assert (again.event, again.failed_nodes) == ("restarted", ())
    assert "rank 1" in again.reason
    assert job.losses() == undisturbed(2)


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", ["kill", "cut"])
def test_lost_node(
    lab: Lab, lab_config: Path, undisturbed: Undisturbed, fault: str, times: Callable[[str], None]
) -> None:
    job = lab.submit(lab_config, *RANKS, "run.name=lab")
    job.wait("RUNNING")
    lost = lab.nodes[1]
    again = goes_on(job, lambda: lab.node(lost, fault), times)
    assert (again.event, again.lost_nodes) == ("requeued", (lost,))
    assert lost in job.log
    assert lost not in {beat.host for beat in job.beats.values()}
    assert job.losses() == undisturbed(2)
    lab.node(lost, "heal")
    time.sleep(20)  # what is left of the job there sees the others again
    assert {event.job for event in jobs.read(job.run_dir)} == {job.number}


@pytest.mark.exhaustive
def test_lost_node_of_the_batch_script(
    lab: Lab, lab_config: Path, undisturbed: Undisturbed, times: Callable[[str], None]
) -> None:
    job = lab.submit(lab_config, *RANKS, "run.name=lab")
    job.wait("RUNNING")
    again = goes_on(job, lambda: lab.node(lab.nodes[0], "kill"), times)
    assert (again.event, again.lost_nodes) == ("requeued", (lab.nodes[0],))
    assert again.job != job.number
    assert f"job {again.job} takes the place of job {job.number}" in job.log
    assert job.losses() == undisturbed(2)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("fails", "environ", "restarts"),
    [
        ("KilledAtStep", {"LAB_KILLED_STEP": "12"}, 1),
        pytest.param("KilledAfterStart", {"LAB_KILLED_AFTER": "14"}, None, marks=pytest.mark.exhaustive),
    ],
)
def test_rank_that_dies_again_and_again(
    lab: Lab,
    tiny_shards: Path,
    tmp_path: Path,
    undisturbed: Undisturbed,
    fails: str,
    environ: dict[str, str],
    restarts: int | None,
) -> None:
    """At the same step: the job ends at the second time, with the reason. With steps gained in between it comes to its end,
    although that takes more restarts than are allowed without."""
    callbacks = {"callbacks": ["lab_callbacks:Paced", f"lab_callbacks:{fails}"]}
    config = lab_config_of(tmp_path, tiny_shards, steps=STEPS, train=callbacks)
    given = [word for name, value in environ.items() for word in ("--env", f"{name}={value}")]
    job = lab.submit(config, *RANKS, "--max-restarts", "1", *given, "run.name=lab")
    state = job.wait("COMPLETED", "FAILED")
    again = events(job, "restarted")
    if restarts is None:
        assert state == "COMPLETED", job.log
        assert len(again) >= 2
        assert job.losses() == undisturbed(2)
    else:
        assert state == "FAILED", job.log
        assert len(again) == restarts
        ended = events(job, "failed")[0]
        assert f"at step {ended.reached}" in ended.reason
        assert "Killed" in ended.reason


@pytest.mark.exhaustive
def test_node_that_failed_twice_is_avoided(lab: Lab, lab_config: Path) -> None:
    """By a job that waits already, too: it is started there, queues itself again and is started elsewhere."""
    node = lab.nodes[0]
    job = lab.submit(lab_config, *RANKS, "--sbatch", "hold", "run.name=lab")
    (job.run_dir / nodes.EXCLUDED).write_text(f"{node}  # twice\n")
    lab.ask("scontrol", "release", job.number)
    job.wait("COMPLETED")
    again = events(job, "requeued")
    assert [event.excluded for event in again] == [(node,)]
    assert job.facts["ExcNodeList"] == node
    assert node not in {beat.host for beat in job.beats.values()}
    # By a new one from the start.
    done = command(
        SUBMIT,
        "--config",
        lab_config,
        *RANKS,
        "--dry-run",
        "run.name=lab",
        folder=lab_config.parent,
        environ=lab.environ,
    )
    assert f"--exclude={node}\n" in done.stdout
