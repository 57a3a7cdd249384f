"""What a cluster needs besides: set-up lines, variables, profiles, placement of ranks, an interpreter, a container."""

import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import ROOT
from slurm_lab import Lab

STUB = Path(__file__).parent / "stub_pyxis"
SECRET = secrets.token_hex(8)  # not written out: a snapshot holds this file as well


@pytest.fixture
def noting_python(tmp_path: Path) -> Path:
    """An interpreter that notes each task's environment in `tmp_path`/env-RANK instead of training."""
    path = tmp_path / "noting-python"
    path.write_text(
        f'#!/bin/bash\n[ -z "${{SLURM_STEP_ID:-}}" ] || exec env > {tmp_path}/env-$SLURM_PROCID\nexec {sys.executable} "$@"\n'
    )
    path.chmod(0o755)
    return path


def noted(folder: Path, rank: int) -> dict[str, str]:
    lines = (folder / f"env-{rank}").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def test_set_up_reaches_every_task(lab: Lab, lab_config: Path, tmp_path: Path, noting_python: Path) -> None:
    """From a profile and from the command line; ranks of one node are neighbours; a credential is nowhere on the disk."""
    prolog = tmp_path / "prolog"
    prolog.write_text("#!/bin/sh\necho export FROM_PROLOG=$SLURM_PROCID\n")
    prolog.chmod(0o755)
    profile = tmp_path / "mine.yaml"
    profile.write_text(
        f"""
        partition: low
        gpus-per-node: 2
        cpus-per-task: 1
        python: {noting_python}
        setup: [export FROM_SETUP="it's $(hostname)"]
        env: {{FROM_PROFILE: "two  words", REPLACED: before}}
        srun-arg: [task-prolog={prolog}]
        """
    )
    lab.environ["LAB_TOKEN"] = SECRET
    try:
        job = lab.submit(
            lab_config, "--profile", str(profile), "--nodes", "2",
            "--env", "REPLACED=after", "--env", "LAB_TOKEN", "--env", f"LAB_KEY={SECRET}",
        )  # fmt: skip
    finally:
        del lab.environ["LAB_TOKEN"]
    assert job.wait("COMPLETED", "FAILED") == "COMPLETED", job.log
    for rank in range(4):
        environ = noted(tmp_path, rank)
        assert environ["SLURMD_NODENAME"] == lab.nodes[rank // 2]
        assert environ["FROM_SETUP"] == f"it's {lab.nodes[0]}"
        assert (environ["FROM_PROFILE"], environ["REPLACED"]) == ("two  words", "after")
        assert environ["LAB_TOKEN"] == environ["LAB_KEY"] == SECRET
        assert environ["FROM_PROLOG"] == str(rank)
        assert environ["CUDA_VISIBLE_DEVICES"] == "0,1"
        assert environ["SLURM_DISTRIBUTION"].startswith("block")
    for path in job.run_dir.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
    assert SECRET not in lab.ask("scontrol", "write", "batch_script", job.number, "-")


def test_a_line_of_set_up_that_fails_ends_the_job(lab: Lab, lab_config: Path) -> None:
    job = lab.submit(
        lab_config, "--tasks-per-node", "1", "--setup", "true", "--setup", "module load cuda/99", "--setup", "touch x"
    )
    assert job.wait("COMPLETED", "FAILED") == "FAILED"
    assert (job.facts["ExitCode"], job.facts["Restarts"]) == ("2:0", "0")
    assert "--setup failed: module load cuda/99" in job.log
    assert not (lab_config.parent / "x").exists()
    assert job.steps == []


@pytest.mark.exhaustive
def test_tasks_in_a_container(
    lab: Lab, lab_config: Path, tmp_path: Path, tiny_shards: Path, undisturbed: Callable[[int], list[dict]]
) -> None:
    """Its root has the run's folder, mres and the working folder at their places, the data at another one, and no more."""
    note = tmp_path / "image"
    image = "registry.example.org#me/mres:1"
    before = dict(lab.environ)
    lab.environ |= {
        "PATH": f"{STUB}:{os.environ['PATH']}",
        "CONTAINER_NOTES": str(note),
        "IMAGE_VENV": str(Path(sys.prefix).resolve()),
        "IMAGE_PYTHON": sys.base_prefix,
    }
    try:
        job = lab.submit(
            lab_config, "--nodes", "2", "--tasks-per-node", "1", "--cpus-per-task", "1",
            "--container-image", image, "--container-mounts", f"{tiny_shards}:/data/tiny:ro,{ROOT}/tests/helpers",
            "--env", f"PYTHONPATH={ROOT}/tests/helpers", "data.train=/data/tiny", "data.val=/data/tiny",
        )  # fmt: skip
    finally:
        lab.environ = before
    assert job.wait("COMPLETED", "FAILED") == "COMPLETED", job.log
    assert note.read_text().strip() == image
    assert job.losses() == undisturbed(2)
