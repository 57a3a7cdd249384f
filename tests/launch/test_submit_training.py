"""Real training through launch/submit.py: on this machine, and preempted and requeued as under SLURM (stand-ins of
tests/cluster/fake_slurm for sbatch, srun and scontrol)."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from commands import PATIENCE_S

ROOT = Path(__file__).parents[2]
STEPS = 24
CONFIG = """
run: {dir: runs, name: tiny}
data: {train: shards, images_per_batch: 4, expressions_per_image: 2, workers: 0}
model: {size: tiny}
optim: {lr: 1.0e-3, warmup_steps: 2}
train: {steps: %d, log_every: 1, threads: 1}
checkpoint: {every: 1000}
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards and a config."""
    folder = tmp_path_factory.mktemp("work")
    build = [sys.executable, str(ROOT / "tools" / "shard.py"), "build", "scenes", str(folder / "shards")]
    subprocess.run(
        [*build, "--num-images", "16", "--image-size", "64"], check=True, capture_output=True, timeout=PATIENCE_S
    )
    (folder / "tiny.yaml").write_text(CONFIG % STEPS)
    return folder


def submit(work: Path, *options: str, environ: dict[str, str] | None = None) -> "subprocess.Popen[str]":
    command = [sys.executable, str(ROOT / "launch" / "submit.py"), "--config", "tiny.yaml", *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=work, env=environ, stdout=pipe, stderr=pipe, text=True)


def steps_of(run: Path) -> list[int]:
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}")]


def wait_for_steps(run: Path, count: int, process: "subprocess.Popen[str]") -> None:
    while len(steps_of(run)) < count:
        assert process.poll() is None, f"ended too early: {process.communicate()}"
        time.sleep(0.05)


def test_ctrl_c_saves_and_the_same_command_goes_on(work: Path) -> None:
    options = ["--cluster", "local", "--tasks-per-node", "2", "run.name=local"]
    first = submit(work, *options)
    wait_for_steps(work / "runs" / "local", 3, first)
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=PATIENCE_S)
    assert first.returncode == 130, out + err
    reached = steps_of(work / "runs" / "local")[-1]
    assert reached < STEPS
    second = submit(work, *options)
    out, err = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 0, out + err
    assert f"going on at step {reached}" in out
    assert steps_of(work / "runs" / "local") == list(range(1, STEPS + 1))


@pytest.mark.exhaustive
def test_preempted_under_slurm_saves_requeues_and_goes_on(work: Path, tmp_path: Path) -> None:
    fakes = ROOT / "tests" / "cluster" / "fake_slurm"
    environ = {
        **os.environ,
        "PATH": f"{fakes}{os.pathsep}{os.environ['PATH']}",
        "FAKE_SLURM": str(tmp_path),
        "FAKE_JOB_ID": "4343",
    }
    submitted = submit(work, "--nodes", "2", "--tasks-per-node", "1", "run.name=slurm", environ=environ)
    out, err = submitted.communicate(timeout=PATIENCE_S)
    assert submitted.returncode == 0, err
    assert "scancel 4343" in out

    batch = ["bash", str(tmp_path / "batch")]
    environ |= {"FAKE_NODES": "2", "FAKE_TASKS": "1", "SLURM_JOB_ID": "4343"}
    first = subprocess.Popen(batch, cwd=work, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    run = work / "runs" / "slurm"
    wait_for_steps(run, 3, first)
    for task in psutil.Process(first.pid).children(recursive=True):
        if "submitit.core._submit" in task.cmdline() and "srun" not in " ".join(task.cmdline()):
            task.send_signal(signal.SIGUSR2)  # SLURM's warning, to every task
    first.communicate(timeout=PATIENCE_S)
    log = (run / "submitit" / "4343_0_log.out").read_text()
    assert first.returncode == 0, log
    assert (tmp_path / "scontrol.log").read_text() == "requeue 4343\n"
    reached = steps_of(run)[-1]
    assert reached < STEPS

    environ["SLURM_RESTART_COUNT"] = "1"
    again = subprocess.run(batch, cwd=work, env=environ, timeout=PATIENCE_S, check=False)
    log = (run / "submitit" / "4343_0_log.out").read_text()
    assert again.returncode == 0, log
    assert f"going on at step {reached}" in log
    assert steps_of(run) == list(range(1, STEPS + 1))
