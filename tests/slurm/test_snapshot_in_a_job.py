"""A job's code and config are those of its submission, in SLURM's queue and after a requeue; a run has one live job."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import ROOT, command
from slurm_lab import SUBMIT, Job, Lab, lab_config

OPTIONS = ("--nodes", "2", "--tasks-per-node", "1", "--cpus-per-task", "1", "run.name=lab")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of mres that may be edited, and beside it a callback of the user's."""
    folder = tmp_path / "mres-checkout"
    for name in ("mres", "launch"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    git = ("git", "-c", "user.name=t", "-c", "user.email=t@t")
    for words in (("init", "-q"), ("add", "."), ("commit", "-qm", "the first")):
        subprocess.run([*git, *words], cwd=folder, check=True)
    shutil.copy(ROOT / "tests" / "helpers" / "lab_callbacks.py", tmp_path / "my_callbacks.py")
    return folder


@pytest.mark.exhaustive
def test_an_edit_does_not_reach_a_job_that_is_requeued(
    lab: Lab, checkout: Path, tiny_shards: Path, tmp_path: Path, undisturbed: Callable[[int], list[dict]]
) -> None:
    own = {"callbacks": ["my_callbacks.py:Paced"]}
    # The run's folder and the data by paths that are relative to the working directory.
    config = lab_config(tmp_path, Path(os.path.relpath(tiny_shards, tmp_path)), train=own, run={"dir": "runs"})
    environ = {**lab.environ, "PYTHONPATH": str(checkout)}

    def submit(*options: str) -> "subprocess.CompletedProcess[str]":
        words = [sys.executable, str(checkout / SUBMIT), "--config", config.name, *OPTIONS, *options]
        return subprocess.run(words, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)

    done = submit()
    assert done.returncode == 0, done.stderr
    number = done.stdout.partition("\njob ")[2].split(":")[0]
    job = Job(lab, number, tmp_path / "runs" / "lab")
    job.wait_for_step(8)

    edited = "raise RuntimeError('edited')\n"
    for path in ("mres/__init__.py", "mres/cluster/batch.py", "launch/train.py", "../my_callbacks.py"):
        (checkout / path).write_text(edited)
    config.write_text(config.read_text().replace("lr: 0.002", "lr: 0.5"))
    subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qam", "edited"], cwd=checkout, check=True
    )
    job.preempt()
    job.until(lambda: job.facts.get("Restarts") == "1", "the requeue")
    assert job.wait("COMPLETED", "FAILED") == "COMPLETED", job.log
    assert job.losses() == undisturbed(2)
    first = subprocess.run(["git", "rev-parse", "HEAD~"], cwd=checkout, check=True, capture_output=True, text=True)
    assert json.loads((job.run_dir / "environment.json").read_text())["git_sha"] == first.stdout.strip()


def test_a_run_has_one_live_job(lab: Lab, lab_config: Path, tmp_path: Path) -> None:
    """Of those that were submitted, and of those whose script was given to sbatch by hand, waiting or running."""
    job = lab.submit(lab_config, *OPTIONS, "--sbatch", "hold")
    snapshot = job.run_dir / "snapshot" / "info.json"
    before = snapshot.read_bytes()
    refused = submitted_again(lab, lab_config)
    assert job.number in refused.stderr
    assert "run.name" in refused.stderr
    assert snapshot.read_bytes() == before
    assert lab.ask("squeue", "-h", "-o", "%A").split() == [job.number]
    lab.ask("scancel", job.number)
    job.wait("CANCELLED")

    script = tmp_path / "job.sh"
    done = command(SUBMIT, "--config", lab_config, *OPTIONS, "--script", script, folder=tmp_path, environ=lab.environ)
    assert done.returncode == 0, done.stderr
    by_hand = lab.ask("sbatch", "--parsable", "--hold", str(script)).strip()
    assert by_hand in submitted_again(lab, lab_config).stderr


def submitted_again(lab: Lab, config: Path) -> "subprocess.CompletedProcess[str]":
    done = command(SUBMIT, "--config", config, *OPTIONS, folder=config.parent, environ=lab.environ)
    assert done.returncode == 2, done.stdout
    assert len(done.stderr.splitlines()) == 1
    return done


def test_nothing_is_queued_of_what_is_refused(
    lab: Lab, lab_config: Path, tmp_path: Path, small_disk: Path | None
) -> None:
    def refused(*words: str) -> str:
        done = command(SUBMIT, "--config", lab_config, *OPTIONS, *words, folder=tmp_path, environ=lab.environ)
        assert done.returncode == 2, done.stdout
        assert "Traceback" not in done.stderr
        assert lab.ask("squeue", "-h") == ""
        return done.stderr.splitlines()[-1]

    assert "no shard set at '/nonexistent'" in refused("data.train=/nonexistent")
    assert "--snapshot-limit" in refused("--snapshot-limit", "1")
    if small_disk is not None:
        assert "No space left" in refused(f"run.dir={small_disk}")
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        assert "Read-only" in refused(f"run.dir={small_disk}")
