"""The one batch script, however it comes to SLURM; and what is refused before or by it, with nothing in the queue."""

import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from commands import command
from slurm_lab import SUBMIT, Job, Lab

TWO = ("--nodes", "2", "--tasks-per-node", "1", "--cpus-per-task", "1")


def submit(lab: Lab, config: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    return command(SUBMIT, "--config", config, *options, folder=config.parent, environ=lab.environ)


def test_plan_file_and_job_have_one_script(lab: Lab, lab_config: Path, tmp_path: Path) -> None:
    options = (*TWO, "--time", "10", "--env", "A=it's", "--setup", "true", "run.name=lab", "train.steps=1")
    plan = submit(lab, lab_config, *options, "--dry-run")
    assert plan.returncode == 0, plan.stderr
    assert not (tmp_path / "runs").exists()
    assert submit(lab, lab_config, *options, "--script", "job.sh").returncode == 0
    job = lab.submit(lab_config, *options)
    lab.ask("scontrol", "write", "batch_script", job.number, str(tmp_path / "queued.sh"))
    texts = {path: (tmp_path / path).read_text() for path in ("job.sh", "queued.sh", f"runs/lab/slurm/{job.number}.sh")}
    assert set(texts.values()) == {plan.stdout}


@pytest.mark.exhaustive
def test_the_script_does_what_submission_does(
    lab: Lab, lab_config: Path, tmp_path: Path, undisturbed: Callable[[int], list[dict]]
) -> None:
    """From another folder, by plain sbatch, and requeued."""
    done = submit(lab, lab_config, *TWO, "run.name=lab", "--script", "job.sh")
    assert done.returncode == 0, done.stderr
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    number = lab.ask("sbatch", "--parsable", "../job.sh", cwd=elsewhere).strip()
    job = Job(lab, number, tmp_path / "runs" / "lab")
    job.wait_for_step(6)
    job.preempt()
    assert job.wait("COMPLETED", "FAILED") == "COMPLETED", job.log
    assert job.facts["Restarts"] == "1"
    assert job.losses() == undisturbed(2)
    assert os.listdir(elsewhere) == []


def test_waiting_returns_the_jobs_exit_code(lab: Lab, lab_config: Path) -> None:
    done = submit(
        lab, lab_config, *TWO, "run.name=lab", "--sbatch", "wait", "--max-requeues", "0", "--python", "/bin/false"
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert ": 2 node(s) x 1 task(s)" in done.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--partition hihg", "--partition hihg: the cluster has none of that name; did you mean 'high'?"),
        ("--nodes 5", "--nodes 5: partition low gives a job 4 at most"),
        ("--gpus-per-node 9", "Requested node configuration is not available; change --nodes, --gpus-per-node"),
        ("--constraint a800", "Invalid feature specification; change --constraint"),
        ("--sbatch no-such=1", "unrecognized option '--no-such=1'; change --sbatch"),
    ],
)
def test_what_cannot_start_is_refused_by_option(lab: Lab, lab_config: Path, options: str, words: str) -> None:
    size = () if "gpus" in options else ("--tasks-per-node", "1")
    overrides = ("data.images_per_batch=18",) if "gpus" in options else ("data.images_per_batch=20",)
    done = submit(lab, lab_config, *size, *options.split(), *overrides)
    assert done.returncode == 2, done.stdout
    (said,) = done.stderr.splitlines()
    assert words in said
    assert lab.ask("squeue", "-h") == ""


@pytest.mark.parametrize("place", ["lab.yaml", "pipe", "runs"])
def test_a_place_that_no_script_can_have_is_refused(lab: Lab, lab_config: Path, tmp_path: Path, place: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "runs").mkdir()
    before = lab_config.read_text()
    done = submit(lab, lab_config, *TWO, "--script", place)
    assert done.returncode == 2
    assert "--script" in done.stderr.splitlines()[-1]
    assert place in done.stderr
    assert "Traceback" not in done.stderr
    assert lab_config.read_text() == before


@pytest.mark.parametrize(("mount", "options"), [("size=64k", ()), ("size=64k", ("--no-snapshot",)), ("ro", ())])
def test_a_folder_that_takes_nothing_is_refused_before_anything_is_queued(
    lab: Lab, lab_config: Path, tmp_path: Path, mount: str, options: tuple[str, ...]
) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", mount, "none", runs], check=True)
    try:
        if options:  # the snapshot fills it otherwise
            with suppress(OSError), (runs / "filler").open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
        done = submit(lab, lab_config, *TWO, *options, "run.name=lab")
    finally:
        subprocess.run(["umount", runs], check=True)
    assert done.returncode == 2, done.stdout
    assert str(runs) in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert lab.ask("squeue", "-h") == ""
