"""Runs killed with SIGKILL at every step of a save, one after another in the same folder."""

import random
import time
from pathlib import Path

import pytest
import torch
from saving import CONTEXT, in_process, operations_of_a_save, save_until_killed

from mres.checkpoint import store
from mres.checkpoint.weights import DcpWeights

pytestmark = pytest.mark.slow


def last_saved(log: Path) -> int:
    lines = log.read_text().splitlines() if log.exists() else []
    return int(lines[-1]) if lines else 0


def check(root: Path, log: Path) -> int:
    """The newest checkpoint is good, is not older than the last finished save, and holds its own weights."""
    (found,) = store.newest(root)
    assert isinstance(found, store.Checkpoint), found
    assert found.step >= last_saved(log)
    assert found.state["step"] == found.step
    for _, tensor in DcpWeights(found.folder):
        assert torch.equal(tensor, torch.full_like(tensor, found.step))
    return found.step


def test_a_kill_before_any_operation_leaves_a_good_newest_checkpoint(tmp_path: Path) -> None:
    root, log = tmp_path / "checkpoints", tmp_path / "log"
    count = in_process(operations_of_a_save, tmp_path / "counted")
    assert count > 20
    step = 0
    for kill_at in range(1, count + 1):
        saves = list(range(step + 1, step + 9))
        process = CONTEXT.Process(target=save_until_killed, args=(root, log, saves, kill_at))
        process.start()
        process.join(60)
        assert process.exitcode == -9
        step = check(root, log)
        assert step > saves[0] - 1
    in_process(save_until_killed, root, log, [step + 1, step + 2], None)
    assert sorted(path.name for path in root.iterdir()) == [f"step-{step + n:08d}" for n in (1, 2)]


def test_a_kill_at_any_moment_leaves_a_good_newest_checkpoint(tmp_path: Path) -> None:
    root, log, moments = tmp_path / "checkpoints", tmp_path / "log", random.Random(0)
    step = 0
    for _ in range(8):
        process = CONTEXT.Process(target=save_until_killed, args=(root, log, list(range(step + 1, step + 9999)), None))
        process.start()
        while last_saved(log) <= step:  # it is saving
            assert process.is_alive()
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.join(60)
        assert process.exitcode == -9
        step = check(root, log)
