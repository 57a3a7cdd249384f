"""Runs killed with SIGKILL at every step of a save, one after another in the same folder: what is left can be gone on from.

58 kills and more: before every operation on the disk of a save, in turn written at once and in the background; with two
ranks; and at random moments.
"""

import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from saving import CONTEXT, in_process, operations_of_a_save, rank_of, save_until_killed, tensors

from mres.checkpoint import store
from mres.testing import free_port

pytestmark = pytest.mark.slow


def last_saved(log: Path) -> int:
    lines = log.read_text().splitlines() if log.exists() else []
    return int(lines[-1]) if lines else 0


def check(root: Path, log: Path) -> int:
    """The newest checkpoint is good, is not older than the last finished save, and holds its own tensors."""
    (found,) = store.newest(root)
    assert isinstance(found, store.Checkpoint), found
    assert found.step >= last_saved(log)
    assert found.state["step"] == found.step
    state = tensors(found.folder)
    assert len(state) == 8
    for tensor in state.values():
        assert torch.equal(tensor, torch.full_like(tensor, found.step))
    return found.step


def killed(root: Path, log: Path, step: int, kill_at: int, **options: Any) -> int:
    """Goes on after `step` until the process is killed; the step to go on from."""
    process = CONTEXT.Process(target=save_until_killed, args=(root, log, range(step + 1, step + 9), kill_at, options))
    process.start()
    process.join(120)
    assert process.exitcode == -9
    found = check(root, log)
    assert found > step
    return found


def test_a_kill_before_any_operation_leaves_a_good_newest_checkpoint(tmp_path: Path) -> None:
    root, log = tmp_path / "checkpoints", tmp_path / "log"
    count = in_process(operations_of_a_save, tmp_path / "counted", {})
    assert count > 35
    step = 0
    for kill_at in range(1, count + 1):
        step = killed(root, log, step, kill_at, async_save=kill_at % 2 == 0)
    in_process(save_until_killed, root, log, range(step + 1, step + 3), None, {})
    assert sorted(path.name for path in root.iterdir()) == [f"step-{step + n:08d}" for n in (1, 2)]


def test_a_kill_at_any_moment_leaves_a_good_newest_checkpoint(tmp_path: Path) -> None:
    root, log, moments = tmp_path / "checkpoints", tmp_path / "log", random.Random(0)
    step = 0
    for _ in range(8):
        process = CONTEXT.Process(
            target=save_until_killed, args=(root, log, range(step + 1, step + 9999), None, {"keep_every": 50})
        )
        process.start()
        while last_saved(log) <= step:  # it is saving
            assert process.is_alive()
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.join(60)
        assert process.exitcode == -9
        step = check(root, log)


def test_one_of_two_ranks_is_killed(tmp_path: Path) -> None:
    root, log, choice = tmp_path / "checkpoints", tmp_path / "log", random.Random(1)
    step = 0
    for kill_at in choice.sample(range(1, 36), 8):
        dies, port = choice.randrange(2), free_port()
        arguments = [(root, log, range(step + 1, step + 30), kill_at if rank == dies else None, {}) for rank in (0, 1)]
        processes = [
            CONTEXT.Process(target=rank_of, args=(save_until_killed, rank, 2, port, *arguments[rank]))
            for rank in (0, 1)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        assert processes[dies].exitcode == -9
        assert processes[1 - dies].exitcode == 1, "it has lost the other"
        step = check(root, log)
