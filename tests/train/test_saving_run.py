"""Checkpoints of real runs: written while training goes on, one that cannot be written, the best one."""

import json
from pathlib import Path

import pytest
from tiny_run import TRAIN, Done, lines, losses, run, write_config

from mres.checkpoint import store
from mres.formats.folder import read_manifest

STEPS = 8

pytestmark = pytest.mark.slow


def train(folder: Path, shards: Path, *overrides: str, **options) -> Done:
    folder.mkdir(exist_ok=True)
    config = write_config(folder, shards)
    arguments = ["--config", str(config), f"train.steps={STEPS}", "checkpoint.every=2", *overrides]
    return run(TRAIN, arguments, folder, **options)


def steps(folder: Path) -> list[int]:
    return [store.verify(found).step for found in store.committed(folder / "runs" / "run" / "checkpoints")]


def block(folder: Path, step: int) -> Path:
    """Something that nobody can make a folder of stands where the checkpoint of `step` is to be written."""
    path = folder / "runs" / "run" / "checkpoints" / f"step-{step:08d}.incomplete"
    path.parent.mkdir(parents=True)
    path.write_text("")
    return path


def test_what_is_written_in_the_background_is_what_was_there(tmp_path: Path, tiny_shards: Path) -> None:
    keep = "checkpoint.keep=9"
    assert train(tmp_path / "a", tiny_shards, keep, "checkpoint.async_save=false").codes == [0]
    done = train(tmp_path / "b", tiny_shards, keep, "checkpoint.async_save=true", "checkpoint.keep_every=4")
    assert done.codes == [0], done.output
    assert losses(tmp_path / "a" / "runs" / "run") == losses(tmp_path / "b" / "runs" / "run")
    checkpoints = [tmp_path / name / "runs" / "run" / "checkpoints" for name in "ab"]
    for folder in checkpoints:
        assert [store.step_of(path) for path in store.committed(folder)] == [8, 6, 4, 2]
        assert store.locate(folder).step == 8
    for step in (2, 4, 6, 8):
        one, other = (read_manifest(store.step_folder(folder, step))[1] for folder in checkpoints)
        assert one["__0_0.distcp"] == other["__0_0.distcp"]
    metrics = lines(tmp_path / "b" / "runs" / "run" / "metrics.jsonl")
    assert all(line["checkpoint_stall_s"] >= line["checkpoint_wait_s"] >= 0 for line in metrics)
    assert [line["checkpoint_stall_s"] > 0 for line in metrics] == [step in (3, 5, 7) for step in range(1, 9)]
    assert sum(line["checkpoint_write_s"] for line in metrics) > 0
    assert metrics[-1]["checkpoint_failures"] == 0


def test_a_failure_in_the_background_stops_all_ranks_with_one_message(tmp_path: Path, tiny_shards: Path) -> None:
    path = block(tmp_path, 4)
    done = train(tmp_path, tiny_shards, "parallel.strategy=fsdp", world_size=2)
    assert done.codes == [2, 2], done.outputs
    final = path.with_suffix("")
    assert f"error: checkpoint {final.relative_to(tmp_path)} was not written: File exists: '" in done.output
    assert "MB were free there); checkpoints written before it stand, run the same command again" in done.output
    assert "Traceback" not in "".join(done.outputs)
    assert steps(tmp_path) == [2]
    path.unlink()
    again = train(tmp_path, tiny_shards, "parallel.strategy=single")
    assert again.codes == [0], again.output
    assert "going on at step 2 " in again.output
    assert [line["step"] for line in losses(tmp_path / "runs" / "run")] == list(range(1, STEPS + 1))


@pytest.mark.parametrize(("blocked", "code", "left"), [(4, 0, [8, 6, 2]), (STEPS, 2, [6, 4])])
def test_a_run_may_go_on_without_a_checkpoint_but_not_end_without_one(
    tmp_path: Path, tiny_shards: Path, blocked: int, code: int, left: list[int]
) -> None:
    block(tmp_path, blocked)
    done = train(tmp_path, tiny_shards, "checkpoint.on_failure=continue", f"checkpoint.keep={len(left)}")
    assert done.codes == [code], done.output
    assert steps(tmp_path) == left
    if code == 0:
        assert "was not written: File exists" in done.output
        assert "training goes on, the next one is tried when it is due" in done.output
        assert lines(tmp_path / "runs" / "run" / "metrics.jsonl")[-1]["checkpoint_failures"] == 1
    else:
        assert f"error: checkpoint runs/run/checkpoints/step-{blocked:08d} was not written" in done.output


def test_the_best_stays_beside_the_newest(tmp_path: Path, tiny_shards: Path) -> None:
    best = ["checkpoint.keep_best=object_part.oIoU", "checkpoint.keep=1"]
    refused = train(tmp_path, tiny_shards, *best)
    assert refused.codes == [2]
    assert "checkpoint.keep_best=object_part.oIoU needs evaluations where there are checkpoints" in refused.output
    done = train(tmp_path, tiny_shards, *best, "evaluate.every=2", "optim.lr=0.02")
    assert done.codes == [0], done.output
    measured = {e["step"]: e["object_part"]["oIoU"] for e in lines(tmp_path / "runs" / "run" / "evaluations.jsonl")}
    highest = max(measured, key=lambda step: (measured[step], -step))
    said = json.loads((tmp_path / "runs" / "run" / "checkpoints" / "best.json").read_text())
    assert said == {
        "step": highest,
        "figure": "object_part.oIoU",
        "value": measured[highest],
        "folder": f"step-{highest:08d}",
    }
    assert steps(tmp_path) == sorted({STEPS, highest}, reverse=True)
