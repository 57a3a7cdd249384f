"""The demo's stages: each is found done by what it left, and only then."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from commands import PATIENCE_S

from mres.config import load_config
from mres.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """tools/demo.py as a module whose ROOT is an empty folder with the real configs."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    module = runpy.run_path(str(ROOT / "tools" / "demo.py"), run_name="demo")
    for function in (module["stages"], module["_is_trained"], module["_is_evaluated"]):
        monkeypatch.setitem(function.__globals__, "ROOT", tmp_path)
        monkeypatch.setitem(function.__globals__, "DATA", tmp_path / "data" / "demo")
    return module


def test_nothing_is_done_in_an_empty_folder(demo: dict) -> None:
    assert [stage.done() for stage in demo["stages"](2)] == [False] * 7


def finish(checkpoint: Path, config: str, overrides: tuple[str, ...] = ()) -> None:
    checkpoint.mkdir(parents=True)
    (checkpoint / "MANIFEST.json").touch()
    (checkpoint / "config.yaml").write_text(load_config(ROOT / "configs" / config, overrides).to_yaml())


def draw(folder: Path, **changed: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    source = {"num_images": 200, "seed": 3, "relational_share": 0.25, **changed}
    (folder / "manifest.json").write_text(json.dumps({"source": source}))


def test_a_stage_is_done_once_its_last_file_is_there(demo: dict, tmp_path: Path) -> None:
    stages = demo["stages"](2)
    draw(tmp_path / "data/demo/val")
    checkpoints = tmp_path / "runs/demo-pretrain/checkpoints"
    finish(checkpoints / "step-00000325", "demo_pretrain.yaml")  # an early checkpoint is not the end
    assert [stage.done() for stage in stages] == [False, False, True, False, False, False, False]
    finish(checkpoints / "step-00001300", "demo_pretrain.yaml")
    assert [stage.done() for stage in stages] == [False, False, True, True, False, False, False]


def test_what_other_settings_left_is_refused(demo: dict, tmp_path: Path) -> None:
    stages = demo["stages"](2)
    draw(tmp_path / "data/demo/val", seed=4)
    with pytest.raises(UserError, match="remove that folder to draw them again"):
        stages[2].done()
    finish(tmp_path / "runs/demo/checkpoints/step-00001300", "demo.yaml", ("optim.lr=1e-4",))
    with pytest.raises(UserError, match="remove that folder"):
        stages[4].done()


def test_results_of_another_checkpoint_do_not_count(demo: dict, tmp_path: Path) -> None:
    evaluate = demo["stages"](2)[5]
    run = tmp_path / "runs/demo"
    (run / "checkpoints/step-00001300").mkdir(parents=True)
    (run / "checkpoints/step-00001300/MANIFEST.json").touch()
    (run / "results.json").write_text('{"checkpoint": "runs/demo/checkpoints/step-00000800"}')
    assert not evaluate.done()
    (run / "results.json").write_text('{"checkpoint": "runs/demo/checkpoints/step-00001300"}')
    assert evaluate.done()


# As the trainer does it: a rank that is asked to stop saves, which takes a moment.
RANK = """
import os, signal, sys, time
asked = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, frame: asked.append(number))
print("rank started", os.getpid(), flush=True)
while not asked:
    time.sleep(0.05)
time.sleep(1)
open(sys.argv[1], "a").write(f"saved by {asked}\\n")
"""

DEMO = """
import runpy, sys
demo = runpy.run_path(sys.argv.pop(1), run_name="demo")
stage = demo["Stage"]("training", lambda: False, [sys.executable, *sys.argv[1:]])
sys.exit(demo["exit_on_user_error"](lambda: demo["run"](stage, 1, 1))())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "passed_on"),
    [
        (signal.SIGTERM, 143, signal.SIGTERM),
        pytest.param(signal.SIGINT, 130, signal.SIGINT, marks=pytest.mark.exhaustive),
        pytest.param(signal.SIGHUP, 129, signal.SIGTERM, marks=pytest.mark.exhaustive),
        pytest.param(signal.SIGKILL, -signal.SIGKILL, signal.SIGTERM, marks=pytest.mark.exhaustive),
    ],
)
def test_nothing_is_left_training(tmp_path: Path, number: signal.Signals, code: int, passed_on: signal.Signals) -> None:
    """The real torchrun between: it is sent one signal, waits for its ranks, and the demo waits for it."""
    (tmp_path / "rank.py").write_text(RANK)
    (tmp_path / "demo.py").write_text(DEMO)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", tmp_path / "rank.py"]
    command = [sys.executable, "demo.py", ROOT / "tools" / "demo.py", *torchrun, tmp_path / "saved"]
    started = tmp_path / "out.txt"
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with started.open("w") as out:
        process = subprocess.Popen([str(word) for word in command], cwd=tmp_path, env=environ, stdout=out)
    while started.read_text().count("rank started") < 2:
        assert process.poll() is None, started.read_text()
        time.sleep(0.1)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 3, "torchrun and its ranks"
    for _ in range(3):  # as `timeout make demo` does: to make, to the demo, and to both as a group
        process.send_signal(number)
    assert process.wait(timeout=PATIENCE_S) == code
    if number == signal.SIGKILL:  # the kernel asks torchrun
        psutil.wait_procs(family, timeout=PATIENCE_S)
    assert [child for child in family if child.is_running()] == []
    assert (tmp_path / "saved").read_text().splitlines() == [f"saved by [{int(passed_on)}]"] * 2


def test_under_nohup_a_closed_terminal_is_nothing(demo: dict) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with demo["Relay"]() as relay:
            os.kill(os.getpid(), signal.SIGHUP)
        assert relay.received is None
    finally:
        signal.signal(signal.SIGHUP, before)
