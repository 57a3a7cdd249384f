"""Real training through launch/submit.py on this machine; on a real SLURM: tests/slurm."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

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


def submit(work: Path, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(ROOT / "launch" / "submit.py"), "--config", "tiny.yaml", *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=work, stdout=pipe, stderr=pipe, text=True)


def steps_of(run: Path) -> list[int]:
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}")]


def wait_for_steps(run: Path, count: int, process: "subprocess.Popen[str]") -> None:
    while len(steps_of(run)) < count:
        assert process.poll() is None, f"ended too early: {process.communicate()}"
        time.sleep(0.05)


@pytest.mark.exhaustive
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
