"""A job in the lab trains to its end, with the losses of the same run on this machine."""

from collections.abc import Callable
from pathlib import Path

import pytest
from slurm_lab import Lab


@pytest.mark.parametrize(
    "nodes", [2, pytest.param(1, marks=pytest.mark.exhaustive), pytest.param(4, marks=pytest.mark.exhaustive)]
)
def test_submitted_job_trains(lab: Lab, lab_config: Path, undisturbed: Callable[[int], list[dict]], nodes: int) -> None:
    job = lab.submit(lab_config, "--nodes", str(nodes), "--tasks-per-node", "1", "--cpus-per-task", "1", "run.name=lab")
    assert job.wait("COMPLETED", "FAILED") == "COMPLETED", job.log
    assert job.losses() == undisturbed(nodes)
    assert {beat.host for beat in job.beats.values()} == set(lab.nodes[:nodes])
