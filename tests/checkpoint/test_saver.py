"""Saving while training goes on: what is written is what was there, what fails is told to all."""

from functools import partial
from pathlib import Path

import pytest
import torch
from saving import in_flight, in_process, on_ranks, saves, tensors

from mres.checkpoint import store
from mres.formats.folder import CheckpointError


def _train_on(root: Path) -> tuple[dict[str, float], dict[str, float]]:
    *_, (saver, _) = in_flight(root, [1, 2, 3], {"keep": 9})
    in_between = saver.figures()
    saver.wait()
    return in_between, saver.figures()


def test_training_goes_on_and_the_state_of_before_is_written(tmp_path: Path) -> None:
    first, last = in_process(_train_on, tmp_path)
    assert [store.verify(folder).step for folder in store.committed(tmp_path)] == [3, 2, 1]
    for step in (1, 2, 3):
        for tensor in tensors(store.step_folder(tmp_path, step)).values():
            assert torch.equal(tensor, torch.full_like(tensor, step))
    assert first["checkpoint_stall_s"] > first["checkpoint_wait_s"] > 0, "a save waits for the one before"
    assert first["checkpoint_write_s"] > 0
    assert last["checkpoint_stall_s"] == 0, "it was told before"
    assert last["checkpoint_write_s"] > 0


def _poisoned(root: Path, value: float) -> tuple[str, int]:
    """Rank 1 alone has a moment that is not finite, at step 2."""
    from mres.dcp.local_shards import local_tensors

    for saver in saves(root, [1], on_failure="continue"):
        strategy = saver._strategy
        shards = dict(local_tensors(strategy.local_shards()))
        mine = [name for name in shards if name.startswith("optim.bias.exp")]
        for name in mine:
            shards[name].view(-1)[-1] = value
        try:
            saver.save(2)
            saver.wait()
        except CheckpointError as error:
            return str(error), len(mine)
    return "", 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_never_published(tmp_path: Path, value: float) -> None:
    (one, number), (other, more) = on_ranks(partial(_poisoned, value=value), 2, tmp_path)
    assert one == other
    assert number + more == 2
    assert "step-00000002 was not written: 2 of its tensors are not finite: optim.bias.exp_avg, optim.bias.exp" in one
    assert "checkpoints written before it stand, run the same command again" in one, (
        "whatever checkpoint.on_failure says"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def _in_its_way(root: Path, on_failure: str) -> tuple[list[str], str, int]:
    """Nothing can be written at step 2; rank 1 is asked first whether something has failed."""
    said: list[str] = []
    try:
        for saver, step in in_flight(root, [1, 2, 3], {"on_failure": on_failure}, said.append):
            if step == 1:
                saver.wait()
                if saver._strategy.world.is_main:
                    (root / "step-00000002.incomplete").write_text("")
                saver._strategy.barrier()
            else:
                while saver._strategy.all_reduce_sum([float(saver.failed())])[0] == 0 and step == 2:
                    pass
                saver.wait()
    except CheckpointError as error:
        return said, str(error), -1
    return said, "", saver.figures()["checkpoint_failures"]


@pytest.mark.parametrize("on_failure", ["stop", "continue"])
def test_a_failure_in_the_background_is_told_to_all_at_a_boundary(tmp_path: Path, on_failure: str) -> None:
    one, other = on_ranks(_in_its_way, 2, tmp_path, on_failure)
    assert one == other
    said, error, failures = one
    words = f"checkpoint {tmp_path}/step-00000002 was not written: File exists: '{tmp_path}/step-00000002.incomplete' ("
    if on_failure == "stop":
        assert error.startswith(words)
        assert "checkpoints written before it stand" in error
        assert [path.name for path in store.committed(tmp_path)] == ["step-00000001"]
    else:
        assert said[1].startswith(f"warning: {words}")
        assert failures == 1
        assert [path.name for path in store.committed(tmp_path)] == ["step-00000003", "step-00000001"]


def _without_memory(root: Path) -> tuple[list[str], dict[str, float]]:
    from mres.checkpoint import saver as module

    module.available_bytes = lambda: 10_000  # rank 1's copies of 4 kB each do not fit beside rank 0's
    said: list[str] = []
    *_, saver = saves(root, [1, 2], width=32, say=said.append)
    return said, saver.figures()


def test_without_memory_for_copies_training_waits_and_nothing_is_lost(tmp_path: Path) -> None:
    one, other = on_ranks(_without_memory, 2, tmp_path)
    assert one[0] == other[0]
    assert [text.split()[0] for text in one[0]] == ["warning:", "checkpoint", "checkpoint"]
    assert "MB of memory left, and copies of its ranks' state take 0 MB: checkpoints are written while" in one[0][0]
    assert [store.verify(folder).step for folder in store.committed(tmp_path)] == [2, 1]
