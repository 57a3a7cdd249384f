"""Spikes are skipped and counted; too many of them, and the run goes back and on with other batches; too often, it ends."""

import json
import math
from pathlib import Path

import pytest
import torch
from poisoned_training import PoisonedTask, fit
from tiny_run import TRAIN, lines, losses, run, write_config
from torch import Tensor, nn

from mres.config import load_config
from mres.errors import UserError
from mres.stream.batch import Batch
from mres.testing import run_distributed
from mres.train.progress import Progress

STEPS = 24


class SpikingTask(PoisonedTask):
    """A task of which some calls' losses are a thousand times too high."""

    def losses(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        poisoned, self.poisoned = self.poisoned, frozenset()
        sums = super().losses(module, batch)
        self.poisoned = poisoned
        return {name: value * (1000.0 if self.step in poisoned else 1.0) for name, value in sums.items()}


@pytest.fixture
def config(tmp_path: Path, tiny_shards: Path) -> Path:
    return write_config(tmp_path, tiny_shards)


def overrides(folder: Path, *more: str) -> list[str]:
    return [
        f"run.dir={folder / 'runs'}", f"train.steps={STEPS}", "train.spike_factor=20", "train.spike_window=8",
        "train.max_spikes=2", "checkpoint.every=6", "checkpoint.keep=9", *more,
    ]  # fmt: skip


def spiking(config: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, calls: set[int], *more: str):
    import poisoned_training

    monkeypatch.setattr(poisoned_training, "PoisonedTask", SpikingTask)
    return fit(load_config(config, overrides(folder, *more)), monkeypatch, calls)


def test_a_spike_is_skipped_named_and_counted(tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = spiking(config, tmp_path, monkeypatch, {10, 15}, "train.log_every=4")
    assert done.code == 0
    still = [n for n, (a, b) in enumerate(zip(done.weights, done.weights[1:], strict=False), 2) if torch.equal(a, b)]
    assert still == [10, 15]
    run_dir = tmp_path / "runs" / "run"
    bad, trace = lines(run_dir / "bad_steps.jsonl"), lines(run_dir / "batches.jsonl")
    assert [(line["step"], line["batch"]) for line in bad] == [(10, 9), (15, 14)]
    for line in bad:
        assert line["reason"] == "loss and gradient norm are spikes"
        assert line["grad_norm"] > 20
        assert line["image_ids"] == trace[line["batch"]]["image_ids"]
        assert line["expression_ids"] == trace[line["batch"]]["expression_ids"]
    last = lines(run_dir / "metrics.jsonl")[-1]
    assert (last["spikes"], last["bad_steps"], last["rollbacks"]) == (2, 0, 0)


@pytest.fixture
def gone_back(tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that met spikes at steps 14, 15 and 17: seen at step 18, the third within a window of 8."""
    done = spiking(config, tmp_path, monkeypatch, {14, 15, 17}, "train.log_every=3", "optim.ema_decay=0.9")
    assert done.code == 0
    return tmp_path / "runs" / "run"


def test_too_many_spikes_go_back_and_on_with_other_batches(gone_back: Path) -> None:
    (note,) = lines(gone_back / "rollbacks.jsonl")
    assert (note["step"], note["reached"], note["skipped_batches"]) == (12, 18, 6)
    assert "3 of the 8 steps up to step 17 were spikes" in note["reason"]
    assert [line["step"] for line in note["bad_steps"]] == [14, 15, 17]
    assert [line["batch"] for line in note["bad_steps"]] == [13, 14, 16]
    assert not (gone_back / "bad_steps.jsonl").read_text()
    metrics = lines(gone_back / "metrics.jsonl")
    assert [line["step"] for line in metrics] == list(range(3, STEPS + 1, 3)), "what was taken back is there once"
    assert [line["rollbacks"] for line in metrics] == [0] * 4 + [1] * 4
    assert metrics[-1]["spikes"] == 3
    assert metrics[-1]["images_seen"] == 22 * 5, "30 batches of the stream, 6 an epoch"
    assert [line["step"] for line in lines(gone_back / "batches.jsonl")] == list(range(1, STEPS + 1))


@pytest.mark.exhaustive
def test_the_batches_after_those_that_were_seen(
    gone_back: Path, tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tmp_path / "plain"
    done = fit(load_config(config, [f"run.dir={plain}", "train.steps=30"]), monkeypatch, set())
    assert done.code == 0
    stream = [line["expression_ids"] for line in lines(plain / "run" / "batches.jsonl")]
    trained = [line["expression_ids"] for line in lines(gone_back / "batches.jsonl")]
    assert trained == stream[:12] + stream[18:]


@pytest.mark.exhaustive
def test_a_run_that_went_back_goes_on_after_a_kill_where_it_was(gone_back: Path, config: Path) -> None:
    """From the checkpoint that was written anew at once, and from a later one; both know what was skipped."""
    states = {
        step: json.loads((gone_back / "checkpoints" / f"step-{step:08d}" / "state.json").read_text())
        for step in (6, 12, 18, 24)
    }
    assert [state["skipped_batches"] for state in states.values()] == [0, 6, 6, 6]
    assert [state["rollbacks"] for state in states.values()] == [0, 1, 1, 1]
    assert [state["stream"]["images_consumed"] for state in states.values()] == [22, 66, 88, 110]
    before = losses(gone_back)
    for step in (12, 18):
        resume = [f"checkpoint.resume={gone_back}/checkpoints/step-{step:08d}", f"run.name=again-{step}"]
        folder = gone_back.parent.parent
        again = run(TRAIN, ["--config", str(config), *overrides(folder, "optim.ema_decay=0.9"), *resume], folder)
        assert again.codes == [0], again.output
        name = folder / "runs" / f"again-{step}"
        assert losses(name)[2::3][-1] == before[-1], "bit for bit"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["train.max_rollbacks=0"], "3 of the 8 steps up to step 17 were spikes"),
        (["train.max_rollbacks=1"], "the run went back 1 times before (train.max_rollbacks=1)"),
        (["checkpoint.every=1000"], "there is no checkpoint of before step 14 to go back to"),
    ],
)
def test_a_clear_end(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], words: str
) -> None:
    calls = {14, 15, 17, 22, 23, 24}  # call 19 is step 13 again
    with pytest.raises(UserError) as raised:
        spiking(config, tmp_path, monkeypatch, calls, "train.log_every=1", *more)
    assert words in str(raised.value)
    assert "bad_steps.jsonl" in str(raised.value)


def test_steps_that_are_not_finite_go_back_too(tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = [f"run.dir={tmp_path / 'runs'}", "train.max_bad_steps=1", "checkpoint.every=4", "checkpoint.keep=9"]
    done = fit(load_config(config, more), monkeypatch, {8, 9})
    assert done.code == 0
    (note,) = lines(tmp_path / "runs" / "run" / "rollbacks.jsonl")
    # The checkpoint of 8 steps was written behind the first of them.
    assert (note["step"], note["reached"], note["skipped_batches"]) == (4, 9, 5)
    assert note["bad_steps"][0]["grad_norm"] is None
    last = lines(tmp_path / "runs" / "run" / "metrics.jsonl")[-1]
    assert (last["bad_steps"], last["rollbacks"]) == (2, 1)


def _train_beside_a_rank_that_spikes(config: Path, overrides: list[str]) -> tuple[int, Progress]:
    """One of two ranks; the last one's losses alone are too high at times."""
    from mres.stream.sets import TrainingSets
    from mres.supervise.stop_request import StopRequest
    from mres.supervise.world import join_world, leave_world
    from mres.train import session

    chosen = load_config(config, overrides)
    world = join_world(chosen.parallel.timeout_s)
    SpikingTask.poisoned = frozenset({14, 15, 17} if world.rank else ())
    session.SegmentationTask = SpikingTask  # type: ignore[misc]
    running = session._Session(chosen, TrainingSets.open(chosen.data), world, StopRequest())
    try:
        return running.run(), running.progress
    finally:
        leave_world()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp", pytest.param("zero", marks=pytest.mark.exhaustive)])
def test_ranks_go_back_together_for_the_sake_of_one(tmp_path: Path, config: Path, strategy: str) -> None:
    more = [f"parallel.strategy={strategy}", "train.log_every=3"]
    first, second = run_distributed(_train_beside_a_rank_that_spikes, 2, config, overrides(tmp_path, *more))
    assert first[0] == second[0] == 0
    assert first[1] == second[1]
    assert (first[1].spikes, first[1].rollbacks, first[1].skipped_batches) == (3, 1, 6)
    (note,) = lines(tmp_path / "runs" / "run" / "rollbacks.jsonl")
    assert all(len(line["image_ids"]) == 4 for line in note["bad_steps"]), "of both ranks"
    assert [line["step"] for line in lines(tmp_path / "runs" / "run" / "batches.jsonl")] == list(range(1, STEPS + 1))


def test_counts_that_stay_and_counts_that_go_back() -> None:
    now = Progress(
        100, bad_steps=3, spikes=4, rollbacks=1, skipped_batches=5, quarantined={"a"}, recent=[[1.0], [None]]
    )
    then = Progress(60, bad_steps=1, recent=[[0.5], [math.pi]])
    back = now.gone_back(json.loads(json.dumps(then.to_json())), step=20, reached=27)
    assert back == Progress(60, bad_steps=3, spikes=4, rollbacks=2, skipped_batches=12, recent=[[0.5], [math.pi]])
