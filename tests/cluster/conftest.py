"""Commands that stand in for SLURM's, and the way for tasks to find `tiny_entry`."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import PATIENCE_S

HERE = Path(__file__).parent


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks can import `tiny_entry`."""
    monkeypatch.setenv("PYTHONPATH", str(HERE), prepend=os.pathsep)


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: None) -> Path:
    """sbatch, srun and scontrol are on PATH; what they note lies in the folder returned."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(HERE / "fake_slurm"), prepend=os.pathsep)
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    return folder


@pytest.fixture
def run_batch(fake_slurm: Path) -> Callable[..., int]:
    """Runs the batch file that was submitted last, as SLURM would on the first node; returns its exit code."""

    def run(nodes: int, tasks: int, **variables: str) -> int:
        environ = {
            **os.environ,
            "FAKE_NODES": str(nodes),
            "FAKE_TASKS": str(tasks),
            "SLURM_JOB_ID": "4242",
            **variables,
        }
        return subprocess.run(
            ["bash", str(fake_slurm / "batch")], env=environ, timeout=PATIENCE_S, check=False
        ).returncode

    return run
