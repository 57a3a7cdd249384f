"""Real runs that freeze and keep an average: what they save, evaluate and export, and what may go on from them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import EVALUATE, TRAIN, Done, lines, losses, run, write_config

from mres.checkpoint.opening import open_weights
from mres.convert.convert import convert
from mres.formats.folder import CheckpointError

pytestmark = pytest.mark.slow
OPTIONS = ["train.steps=8", "optim.freeze=[text]", "optim.ema_decay=0.9", "optim.layer_decay=0.8"]
EVALUATED = ["evaluate.every=8", "evaluate.weights=ema"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_shards: Path) -> Path:
    folder = tmp_path_factory.mktemp("averaged")
    write_config(folder, tiny_shards)
    return folder


def train(folder: Path, *overrides: str) -> Done:
    return run(TRAIN, ["--config", str(folder / "tiny.yaml"), *overrides], folder)


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    done = train(folder, *OPTIONS, *EVALUATED)
    assert done.codes == [0], done.output
    assert "frozen" in done.output
    return folder / "runs" / "run" / "checkpoints" / "step-00000008"


def test_a_checkpoint_holds_both(trained: Path) -> None:
    weights, average = dict(open_weights(trained).weights), dict(open_weights(trained, "ema").weights)
    assert weights.keys() == average.keys()
    same = {name for name in weights if torch.equal(weights[name], average[name])}
    assert {name for name in weights if name.startswith("text.")} <= same
    assert len(same) < len(weights) / 2


def test_the_evaluation_during_training_is_the_command_with_the_average(trained: Path, folder: Path) -> None:
    (during,) = lines(folder / "runs" / "run" / "evaluations.jsonl")
    found = {}
    for weights in ("ema", "model"):
        words = ["--config", str(folder / "tiny.yaml"), "--checkpoint", "runs/run", "--out", weights]
        done = run(EVALUATE, [*words, f"evaluate.weights={weights}"], folder)
        assert done.codes == [0], done.output
        found[weights] = json.loads((folder / weights / "results.json").read_text())["object_part"]["mIoU"]
    assert found["ema"] == pytest.approx(during["object_part"]["mIoU"], abs=1e-6)
    assert found["model"] != pytest.approx(found["ema"], abs=1e-4)


def test_the_average_is_exported(trained: Path, tmp_path: Path) -> None:
    average = dict(open_weights(trained, "ema").weights)
    for form in ("safetensors", "dcp"):
        exported = convert(trained, tmp_path / form, form, weights="ema")
        source = open_weights(exported, "ema")
        assert source.state is not None
        assert source.state["weights"] == "ema"
        assert all(torch.equal(value, average[name]) for name, value in source.weights)
    file = tmp_path / "safetensors" / "model.safetensors"
    again = open_weights(convert(file, tmp_path / "again", "dcp"), "ema")
    assert all(torch.equal(value, load_file(file)[name]) for name, value in again.weights)
    plain = convert(trained, tmp_path / "plain", "safetensors")
    for path in (plain, plain / "model.safetensors"):
        with pytest.raises(CheckpointError, match="holds no moving average"):
            open_weights(path, "ema")


def test_an_average_changes_nothing_of_training(trained: Path, folder: Path) -> None:
    assert train(folder, "run.name=without", *OPTIONS[:2], OPTIONS[3], "train.deterministic=true").codes == [0]
    assert losses(folder / "runs" / "without") == losses(folder / "runs" / "run")
    with pytest.raises(CheckpointError, match=r"was trained without optim\.ema_decay"):
        open_weights(folder / "runs" / "without", "ema")


def test_going_on_with_and_without_an_average(trained: Path, folder: Path) -> None:
    more = ["run.name=more", f"checkpoint.resume={trained}", "train.steps=9"]
    done = train(folder, *OPTIONS, *more)
    assert done.codes == [0], done.output
    assert "one begins here" not in done.output
    kept = dict(open_weights(folder / "runs" / "more" / "checkpoints" / "step-00000009", "ema").weights)
    assert train(folder, *OPTIONS[:2], OPTIONS[3], *more, "run.name=off").codes == [0]
    off = folder / "runs" / "off" / "checkpoints" / "step-00000009"
    done = train(folder, *OPTIONS, "run.name=anew", f"checkpoint.resume={off}", "train.steps=10")
    assert "it has no moving average of the weights: one begins here" in done.output
    assert losses(folder / "runs" / "more") == losses(folder / "runs" / "off")
    anew = dict(open_weights(folder / "runs" / "anew" / "checkpoints" / "step-00000010", "ema").weights)
    assert any(not torch.equal(value, kept[name]) for name, value in anew.items())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["optim.freeze=[]"], "cannot resume at step 8: optim.freeze was ['text'] and is now []"),
        (["optim.freeze=[txt]", "checkpoint.resume=never"], "begins with 'txt'; did you mean 'text'?"),
        (["optim.ema_decay=null", *EVALUATED], "evaluate.weights=ema needs a moving average of the weights"),
    ],
)
def test_refused_before_anything_is_written(trained: Path, folder: Path, options: list[str], words: str) -> None:
    before = (folder / "runs" / "run" / "config.yaml").read_text()
    done = train(folder, *OPTIONS, "train.steps=20", *options)
    assert done.codes == [2]
    assert words in done.output
    assert "Traceback" not in done.output
    assert (folder / "runs" / "run" / "config.yaml").read_text() == before
