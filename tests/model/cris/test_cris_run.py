"""CRIS through launch/train.py and launch/evaluate.py: the same losses under every strategy, resumed, evaluated."""

from pathlib import Path

import pytest
import yaml
from tiny_run import EVALUATE, TRAIN, losses, run, tiny_config

MODEL = {
    "kind": "cris", "size": "tiny", "image_size": 64, "vision_width": 4, "vision_positions": 2, "text_width": 32,
    "text_depth": 1, "text_vocab_size": 1024, "text_length": 14, "dropout": 0.1,
}  # fmt: skip


def write_config(folder: Path, shards: Path) -> Path:
    path = folder / "cris.yaml"
    config = tiny_config(shards)
    config["train"]["steps"] = 5  # an epoch has 5 full batches
    path.write_text(yaml.safe_dump({**config, "model": MODEL, "loss": {"dice_weight": 0}}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def on_one(tmp_path_factory: pytest.TempPathFactory, tiny_shards: Path) -> Path:
    """A run of one process."""
    folder = tmp_path_factory.mktemp("single")
    done = run(TRAIN, ["--config", str(write_config(folder, tiny_shards))], folder)
    assert done.codes == [0], done.output
    return folder


def test_it_trains_and_is_evaluated(on_one: Path) -> None:
    values = [line["loss"] for line in losses(on_one / "runs" / "run")]
    assert len(values) == 5
    assert values[-1] < values[0]
    done = run(EVALUATE, ["--config", "cris.yaml", "--checkpoint", "runs/run"], on_one)
    assert done.codes == [0], done.output
    assert (on_one / "runs" / "run" / "results.json").is_file()


def test_one_expression_a_step_has_no_statistics(on_one: Path) -> None:
    words = ["--config", "cris.yaml", "run.name=few", "data.images_per_batch=1", "data.expressions_per_image=1"]
    done = run(TRAIN, words, on_one)
    assert done.codes == [2]
    assert "BatchNorm" in done.output
    assert "data.images_per_batch" in done.output


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        pytest.param(["parallel.strategy=ddp"], marks=pytest.mark.exhaustive),
        ["parallel.strategy=fsdp", "parallel.activation_checkpointing=block"],
        pytest.param(["parallel.strategy=zero", "parallel.zero_stage=2"], marks=pytest.mark.exhaustive),
    ],
    ids=["ddp", "fsdp", "zero2"],
)
def test_two_ranks_compute_the_same(keys: list[str], tmp_path: Path, tiny_shards: Path) -> None:
    """BatchNorm's statistics are those of the whole batch; dropout, which draws by rank, is off.

    A few steps at a low rate: CRIS starts steep (its kernel multiplies 9 C values), and every step magnifies what is rounded.
    """
    words = ["--config", str(write_config(tmp_path, tiny_shards)), "model.dropout=0", "optim.lr=1e-4", "train.steps=4"]
    one = run(TRAIN, [*words, "run.name=one"], tmp_path)
    two = run(TRAIN, [*words, *keys], tmp_path, world_size=2)
    assert one.codes + two.codes == [0, 0, 0], (one.output, two.outputs)
    expected = [line["loss"] for line in losses(tmp_path / "runs" / "one")]
    assert [line["loss"] for line in losses(tmp_path / "runs" / "run")] == pytest.approx(expected, rel=1e-3)
