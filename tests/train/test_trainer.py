"""The real trainer: what it logs, steps that are not finite, images that are broken."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from poisoned_training import fit
from tiny_run import TRAIN, Done, lines, run, write_config

from mres.config import load_config
from mres.errors import UserError
from mres.shards.reader import ShardSet
from mres.train import trainer

KEYS = {
    "step", "epoch", "images_seen", "expressions_seen", "loss", "loss_bce", "loss_dice", "grad_norm", "lr", "step_s",
    "data_wait_s", "images_per_s", "expressions_per_s", "peak_memory_bytes",
}  # fmt: skip


@pytest.fixture
def config(tmp_path: Path, tiny_shards: Path) -> Path:
    return write_config(tmp_path, tiny_shards)


def train(folder: Path, config: Path, *overrides: str, **options) -> Done:
    return run(TRAIN, ["--config", str(config), *overrides], folder, **options)


BROKEN = (3, 17)


def test_metrics_have_the_documented_keys_and_add_up(tmp_path: Path, config: Path) -> None:
    done = train(tmp_path, config, "train.steps=14", "train.log_every=4")
    assert done.codes == [0], done.output
    metrics = lines(tmp_path / "runs" / "run" / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [4, 8, 12, 14]
    for line in metrics:
        assert set(line) >= KEYS
        assert line["loss"] == pytest.approx(line["loss_bce"] + line["loss_dice"], rel=1e-6)
        assert line["data_wait_s"] < line["step_s"]
        assert line["images_per_s"] > 0
        assert line["peak_memory_bytes"] > 1e7
    assert [line["epoch"] for line in metrics] == [0, 1, 1, 2]
    assert [line["images_seen"] for line in metrics] == [16, 30, 44, 52]
    trace = lines(tmp_path / "runs" / "run" / "batches.jsonl")
    assert [line["step"] for line in trace] == list(range(1, 15))
    assert [len(line["image_ids"]) for line in trace] == [4, 4, 4, 4, 4, 2] * 2 + [4, 4]
    assert [line["epoch"] for line in trace] == [0] * 6 + [1] * 6 + [2] * 2
    assert all(len(line["expression_ids"]) == 3 * len(line["image_ids"]) for line in trace)
    facts = json.loads((tmp_path / "runs" / "run" / "environment.json").read_text())
    assert facts["world_size"] == 1
    assert facts["packages"]["torch"] == torch.__version__.split("+")[0]
    again = load_config(tmp_path / "runs" / "run" / "config.yaml")
    assert again == load_config(config, ["train.steps=14", "train.log_every=4"])


def test_accumulation_and_ranks_do_not_change_the_loss(tmp_path: Path, config: Path) -> None:
    """Every expression weighs the same, whatever micro-batch or rank it falls into; only the order of sums differs."""
    plain = ["model.dropout=0", "train.steps=8"]
    for name, options, world_size in (
        ("one", [], 1),
        ("micro", ["train.accumulate=4"], 1),
        ("ranks", ["parallel.strategy=ddp", "train.accumulate=2"], 2),
    ):
        done = train(tmp_path, config, f"run.name={name}", *plain, *options, world_size=world_size)
        assert done.codes == [0] * world_size, done.output
    one, micro, ranks = (lines(tmp_path / "runs" / n / "metrics.jsonl") for n in ("one", "micro", "ranks"))
    for a, b, c in zip(one, micro, ranks, strict=True):
        for key in ("loss", "loss_bce", "loss_dice", "grad_norm"):
            assert b[key] == pytest.approx(a[key], rel=1e-4)
            assert c[key] == pytest.approx(a[key], rel=1e-4)
        assert a["expressions_seen"] == b["expressions_seen"] == c["expressions_seen"]
    batches = {(tmp_path / "runs" / name / "batches.jsonl").read_text() for name in ("one", "micro", "ranks")}
    assert len(batches) == 1


def test_a_step_that_is_not_finite_moves_nothing(
    tmp_path: Path, tiny_shards: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [f"run.dir={tmp_path / 'runs'}", "train.steps=8", "train.log_every=3"]
    done = fit(load_config(config, overrides), monkeypatch, {4, 6})
    assert done.code == 0
    moved = [not torch.equal(a, b) for a, b in zip(done.weights, done.weights[1:], strict=False)]
    assert moved == [True, True, False, True, False, True, True]
    run_dir = tmp_path / "runs" / "run"
    bad, trace = lines(run_dir / "bad_steps.jsonl"), lines(run_dir / "batches.jsonl")
    assert [line["step"] for line in bad] == [4, 6]
    for line in bad:
        (batch,) = [b for b in trace if b["step"] == line["step"]]
        assert line["image_ids"] == batch["image_ids"]
        assert line["expression_ids"] == batch["expression_ids"]
    by_step = {line["step"]: line for line in lines(run_dir / "metrics.jsonl")}
    assert by_step[6]["loss"] is None
    assert by_step[6]["grad_norm"] is None
    assert by_step[3]["loss"] > 0


@pytest.mark.parametrize("extra", [(), ("train.spike_factor=5",)])
def test_a_loss_that_is_not_finite_moves_nothing_though_its_gradient_is(
    extra: tuple[str, ...], tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [f"run.dir={tmp_path / 'runs'}", "train.steps=6", "train.log_every=3", *extra]
    done = fit(load_config(config, overrides), monkeypatch, set(), frozenset({3, 5}))
    moved = [not torch.equal(a, b) for a, b in zip(done.weights, done.weights[1:], strict=False)]
    assert moved == [True, False, True, False, True]
    bad = lines(tmp_path / "runs" / "run" / "bad_steps.jsonl")
    assert [(line["step"], line["loss"], line["reason"]) for line in bad] == [
        (3, None, "loss or gradient is not finite"), (5, None, "loss or gradient is not finite"),
    ]  # fmt: skip
    assert all(0 < line["grad_norm"] < math.inf for line in bad)


def test_a_run_of_which_every_step_was_skipped_does_not_end_well(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [f"run.dir={tmp_path / 'runs'}", "train.steps=3", "train.max_bad_steps=9"]
    for again in range(2):  # it is not complete either
        with pytest.raises(UserError, match=r"all 3 steps of the run were skipped.*bad_steps.jsonl"):
            fit(load_config(config, overrides), monkeypatch, {1, 2}, frozenset({3}))
        assert not list((tmp_path / "runs" / "run" / "checkpoints").glob("step-*")), again
    assert fit(load_config(config, overrides), monkeypatch, {1, 3}).code == 0


def test_nor_is_it_complete_with_the_steps_that_it_has_saved(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [f"run.dir={tmp_path / 'runs'}", "train.steps=3", "train.max_bad_steps=9", "checkpoint.every=1"]
    for steps in (3, 2):
        with pytest.raises(UserError, match=rf"all {steps} steps of the run were skipped.*bad_steps.jsonl"):
            fit(load_config(config, [*overrides, f"train.steps={steps}"]), monkeypatch, {1, 2}, frozenset({3}))


def test_too_many_bad_steps_in_a_row_end_the_run_with_their_ids_saved(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [f"run.dir={tmp_path / 'runs'}", "train.max_bad_steps=2", "train.max_rollbacks=0", "checkpoint.every=4"]
    with pytest.raises(UserError) as raised:
        fit(load_config(config, overrides), monkeypatch, {3, 6, 7, 8})
    text = str(raised.value)
    assert text.startswith(
        "3 steps in a row up to step 8 had a loss or gradient that is not finite (train.max_bad_steps=2); "
    )
    assert str(tmp_path / "runs" / "run" / "bad_steps.jsonl") in text
    run_dir = tmp_path / "runs" / "run"
    assert [line["step"] for line in lines(run_dir / "bad_steps.jsonl")] == [3, 6, 7, 8]
    assert [p.name for p in (run_dir / "checkpoints").iterdir()] == ["step-00000004"], "none behind the bad steps"


@pytest.mark.slow
def test_a_diverging_run_ends_on_all_ranks_in_one_message(tmp_path: Path, config: Path) -> None:
    diverging = ["optim.lr=1e30", "optim.warmup_steps=0", "parallel.strategy=ddp", "train.log_every=2"]
    done = train(tmp_path, config, *diverging, world_size=2)
    assert done.codes == [2, 2]
    assert "steps in a row" in done.output
    assert done.output.count("error: ") == 1
    assert "Traceback" not in "".join(done.outputs)
    assert done.outputs[1].count("error: ") == 0, "rank 0 speaks for both"


@pytest.fixture(scope="module")
def broken_shards(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny set with two records damaged after it was written."""
    folder = tmp_path_factory.mktemp("broken") / "set"
    shutil.copytree(tiny_shards, folder)
    shards = ShardSet(folder)
    for index in BROKEN:
        row = shards.index_N[index]
        with (folder / f"shard-{index // 8:06d}.tar").open("r+b") as tar:
            tar.seek(int(row["offset"]) + int(row["image_offset"]) + 100)
            tar.write(b"damaged")
    return folder


def test_broken_images_are_named_once_and_replaced(tmp_path: Path, config: Path, broken_shards: Path) -> None:
    allowed = [f"data.train={broken_shards}", "data.max_bad_fraction=0.1", "train.steps=18"]
    done = train(tmp_path, config, *allowed)
    assert done.codes == [0], done.output
    run_dir = tmp_path / "runs" / "run"
    quarantine = lines(run_dir / "quarantine.jsonl")
    assert len(quarantine) == 2, "each once, although three epochs met them"
    assert all(any(f": {index:08d}: damaged" in line["error"] for line in quarantine) for index in BROKEN)
    assert done.output.count("warning: another image takes its place: ") == 2
    assert lines(run_dir / "metrics.jsonl")[-1]["bad_images"] == 2
    images = [i for line in lines(run_dir / "batches.jsonl") for i in line["image_ids"]]
    assert len(images) == 3 * 22, "others take their places"
    assert not {f"im{index}" for index in BROKEN} & set(images)


@pytest.mark.parametrize("fraction", [pytest.param("0", marks=pytest.mark.exhaustive), "0.05"])
def test_more_broken_images_than_allowed_end_the_run(
    tmp_path: Path, config: Path, broken_shards: Path, fraction: str
) -> None:
    allowed = [f"data.train={broken_shards}", f"data.max_bad_fraction={fraction}", "parallel.strategy=ddp"]
    done = train(tmp_path, config, *allowed, world_size=2)
    assert done.codes == [2, 2], done.outputs
    number = 1 if fraction == "0" else 2
    assert f"{number} broken images are more than data.max_bad_fraction={fraction} of 22 allows" in done.output
    assert "damaged: the checksum" in done.output
    assert "python tools/shard.py verify" in done.output
    assert "Traceback" not in "".join(done.outputs)


def test_expressions_that_are_cut_are_counted(tmp_path: Path, config: Path) -> None:
    done = train(tmp_path, config, "model.text_length=5", "train.steps=3")
    assert done.codes == [0], done.output
    assert sum(line["cut_expressions"] for line in lines(tmp_path / "runs" / "run" / "metrics.jsonl")) > 5
    assert "longer than the model's 5" in done.output


def test_images_that_stay_for_their_words_are_counted(tmp_path: Path, config: Path) -> None:
    done = train(tmp_path, config, "data.augment.flip=1", "data.augment.flip_words=skip", "train.steps=3")
    assert done.codes == [0], done.output
    assert sum(line["not_mirrored_images"] for line in lines(tmp_path / "runs" / "run" / "metrics.jsonl")) > 3
    assert done.output.count("not_mirrored_images") == 1


def test_every_step_and_rank_has_its_own_dropout() -> None:
    def draw(seed: int, step: int, rank: int) -> tuple[float, ...]:
        trainer._seed_step(seed, step, rank)
        return tuple(torch.rand(3).tolist())

    keys = [(0, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0), (0, 11, 0), (0, 1, 1)]
    assert len({draw(*key) for key in keys}) == len(keys)
    assert draw(0, 1, 0) == draw(0, 1, 0)
