"""`python launch/submit.py` as it is typed."""

import os
import subprocess
from pathlib import Path

import pytest
from commands import ROOT, command, light_commands
from job_scripts import command_of

from mres.config import load_config


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text("run: {name: tiny, dir: 'my runs'}\ndata: {train: nowhere, images_per_batch: 64, workers: 2}\n")
    return path


def submit(config: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    return command("launch/submit.py", "--config", config, *options, folder=config.parent)


def test_dry_run_prints_the_batch_text_and_the_plan(config: Path) -> None:
    done = submit(
        config,
        "--nodes",
        "4",
        "optim.lr=1e-3",
        "--gpus-per-node",
        "8",
        "--time",
        "2-00:00:00",
        "--dry-run",
        "train.steps=9",
        "--no-check-data",
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "#!/bin/bash"  # fit to be kept as a file
    assert "#SBATCH --time=2880" in lines
    assert "#SBATCH --cpus-per-task=4" in lines
    assert "World size 32 = 4 node(s) x 8 task(s), one a GPU" in done.stdout
    snapshot = config.parent / "my runs" / "tiny" / "snapshot"
    assert f"code='{snapshot}/code'" in lines
    assert f"arguments=(--config '{snapshot}/config.yaml')" in lines
    assert "this is a plan" in done.stderr
    assert not (config.parent / "my runs").exists()
    assert subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=False).returncode == 0


def test_dry_run_on_this_machine(config: Path) -> None:
    done = submit(config, "--cluster", "local", "--tasks-per-node", "2", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "2 task(s) on this machine" in done.stdout
    assert "#SBATCH" not in done.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--cluster", "local", "optim.learning_rate=1"], "did you mean 'optim.lr'?"),
        (["--cluster", "local", "--qos", "high"], "--qos has no effect with --cluster local"),
        (["--cluster", "moon"], "invalid choice: 'moon'"),
        (["--node", "4", "--cluster", "local"], "unrecognized arguments: --node"),  # no guessing at abbreviations
        (["--nodes", "0"], "expected a whole number from 1, found '0'"),
        (["--gpus-per-node", "8", "parallel.shard_ranks=3"], "parallel.shard_ranks=3 does not divide the 8 ranks"),
        (["--gpus-per-node", "8", "--dry-run"], "no shard set at 'nowhere'"),
        (
            ["--gpus-per-node", "8", "--dry-run", "--no-check-data", "--no-snapshot", "--snapshot-limit", "3"],
            "no effect",
        ),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(config: Path, options: list[str], words: str) -> None:
    done = submit(config, *options)
    assert done.returncode == 2
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_what_training_refuses_is_the_exit_code(config: Path) -> None:
    done = submit(config, "--cluster", "local")
    assert done.returncode == 2
    assert "nowhere" in done.stdout
    assert list((config.parent / "my runs" / "tiny" / "submitit").glob("*_0_log.out"))


def test_help_and_plan_do_not_load_torch(config: Path) -> None:
    job = ["--config", config, "--gpus-per-node", "1", "--dry-run"]
    done = light_commands("launch/submit.py", [["--help"], [*job, "--no-check-data"], job], config.parent)
    assert [(code, heavy) for code, _, heavy in done] == [(0, []), (0, []), (2, [])]


def test_without_a_snapshot_the_job_runs_what_lies_here(config: Path) -> None:
    options = ["--gpus-per-node", "1", "--dry-run", "--no-check-data", "--no-snapshot", "optim.lr=1e-3"]
    done = submit(config, *options)
    assert done.returncode == 0, done.stderr
    assert {f"code={ROOT}", f"arguments=(--config {config} optim.lr=1e-3)"} <= {*done.stdout.splitlines()}


def test_the_script_runs_the_snapshot_that_comes_with_it(config: Path) -> None:
    done = submit(config, "--gpus-per-node", "1", "--no-check-data", "optim.lr=1e-3", "--script", "job.sh")
    assert done.returncode == 0, done.stderr
    snapshot = config.parent / "my runs" / "tiny" / "snapshot"
    config.write_text("of another run")
    words = command_of((config.parent / "job.sh").read_text())
    train = words[words.index("--") + 1 :]
    assert all(word.startswith(str(snapshot)) for word in words if word.endswith((".py", ".yaml")))
    environ = {**os.environ, "PYTHONPATH": str(snapshot / "code")}
    again = subprocess.run([*train, "--dry-run"], env=environ, capture_output=True, text=True, check=False)
    # It gets as far as the data, which are not there.
    assert "no shard set at 'nowhere'" in again.stderr
    assert load_config(snapshot / "config.yaml").optim.lr == 1e-3
