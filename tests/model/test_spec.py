"""Kinds of models: found, checked piece by piece, and refused by name; a model without memory for its parameters."""

from pathlib import Path

import pytest
import torch
from commands import ROOT, command
from torch import nn

from mres.config import ConfigError, load_config
from mres.errors import UserError
from mres.model.config import LossConfig
from mres.model.spec import absolute_kind, is_same_kind, load_spec, origin_of_kind
from mres.model.task import SegmentationTask
from mres.stream.batch import empty_batch
from mres.train.config import OptimConfig
from mres.train.optim import lr_scales

OWN = f"{ROOT}/docs/own_model.py:SPEC"
FILE = (ROOT / "docs" / "own_model.py").read_text(encoding="utf-8")


def written(folder: Path, *changes: tuple[str, str]) -> str:
    """docs/own_model.py with other pieces, as a kind."""
    text = FILE
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    (folder / "mine.py").write_text(text, encoding="utf-8")
    return f"{folder}/mine.py:SPEC"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("    blocks=lambda model: list(model.blocks),\n", "", ["lacks the piece 'blocks'", "mine.py:"]),
        ("blocks=lambda", "block=lambda", ["has no piece 'block'; did you mean 'blocks'?", "mine.py:"]),
        ("blocks=lambda model: list(model.blocks)", "blocks=7", ["piece 'blocks' is 7, and a function of the module"]),
        ("config=OwnConfig", "config=dict", ["is the class dict", "piece 'config'", "ModelConfig"]),
        ('no_decay=("words",)', 'no_decay="words"', ["piece 'no_decay'", "tuple"]),
        ('text_encoder=Encoder(prefix="words")', 'text_encoder="words"', ["piece 'text_encoder'", "Encoder"]),
        ("SPEC = ModelSpec(", "SPEC = dict(", ["of type dict", "ModelSpec"]),
        ("from pydantic", "from pydantics", ["ModuleNotFoundError", "mine.py:"]),
        ("STRIDE = 4", "STRIDE = exit(0)", ["SystemExit: 0", "mine.py:"]),
    ],
)
def test_a_spec_that_lacks_a_piece_is_refused_with_the_piece_named(
    tmp_path: Path, old: str, new: str, words: list[str]
) -> None:
    with pytest.raises(UserError) as refused:
        load_config(None, [f"model.kind={written(tmp_path, (old, new))}"])
    assert [word for word in ["model.kind", *words] if word not in str(refused.value)] == []


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("unries", ["did you mean 'unires'? (a model of your own"]),
        ("mine", ["unires", "path/to/my_model.py:SPEC"]),
        ("none.py:SPEC", ["no file", "none.py"]),
        (OWN.replace("own_model", "own_modle"), ["no file", "did you mean", "docs/own_model.py"]),
        (OWN.replace("SPEC", "SPEK"), ["'SPEC'"]),
    ],
)
def test_an_unknown_kind_is_refused(kind: str, words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        load_config(None, [f"model.kind={kind}"])
    assert [word for word in words if word not in str(refused.value)] == []


def test_a_kinds_own_keys_are_strict_and_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    kind = "model.kind=docs/own_model.py:SPEC"
    with pytest.raises(ConfigError, match=r"'model\.widht'.*did you mean 'model\.width'"):
        load_config(None, [kind, "model.widht=3"])
    with pytest.raises(ConfigError, match=r"'model\.width'.*allowed in model: kind, "):
        load_config(None, ["model.width=3"])  # near model.kind by its section alone
    with pytest.raises(ConfigError, match=r"model\.width = 20: .*multiple of 8"):
        load_config(None, [kind, "model.width=20"])
    printed = command("mres.config", "configs/demo.yaml", kind).stdout  # another kind's keys in the file do not stay
    assert f"kind: {absolute_kind(OWN)}\n  image_size: 96\n  width: 64\n" in printed


def test_a_config_without_a_kind_is_of_the_one_that_there_was() -> None:
    config = load_config(None, ["model.size=tiny"])
    assert (config.model.kind, load_spec(config.model.kind).name) == ("unires", "UniRES")


def test_a_kind_says_where_it_came_from(tmp_path: Path) -> None:
    kind = written(tmp_path)
    assert origin_of_kind("unires") == {}
    assert origin_of_kind(kind)["kind_file"] == f"{tmp_path}/mine.py"
    assert origin_of_kind(kind) != origin_of_kind(written(tmp_path, ("STRIDE = 4", "STRIDE = 4.0")))
    assert is_same_kind(kind, "/elsewhere/mine.py:SPEC")
    assert not is_same_kind(kind, "unires")


def test_a_model_without_memory_is_the_model(tmp_path: Path) -> None:
    """Tied parameters stay one, and buffers are real, whatever they are and whether they are saved."""
    kind = written(
        tmp_path,
        ("from torch import", "import torch\nfrom torch import"),
        (
            "        self.head = nn.Conv2d(width, 1, kernel_size=1)\n",
            "        self.head = nn.Conv2d(width, 1, kernel_size=1)\n"
            "        self.again = nn.Embedding(config.vocab_size, width)\n"
            "        self.again.weight = self.words.weight\n"
            "        self.norm = nn.BatchNorm2d(width)\n"
            "        self.attention = nn.MultiheadAttention(width, 2)\n"
            "        self.register_buffer('noise', torch.randn(3), persistent=False)\n",
        ),
    )
    config = load_config(None, [f"model.kind={kind}"])
    task = SegmentationTask(config.model, LossConfig())
    outline, whole = task.outline(3), task.build(3)
    assert all(parameter.is_meta for parameter in outline.parameters())
    names = [name for name, _ in whole.named_parameters()]
    assert [name for name, _ in outline.named_parameters()] == names
    assert "again.weight" not in names
    for (name, buffer), (other, expected) in zip(outline.named_buffers(), whole.named_buffers(), strict=True):
        assert (name, buffer.dtype) == (other, expected.dtype)
        assert torch.equal(buffer, expected), name
    assert not any(parameter.isnan().any() for parameter in whole.parameters())
    assert set(lr_scales(outline, OptimConfig(text_lr_scale=0.5, layer_decay=0.9), task.spec).values()) == {0.5, 1.0}


def test_a_scale_for_an_encoder_that_the_spec_lacks_is_refused() -> None:
    config = load_config(None, [f"model.kind={OWN}"])
    task = SegmentationTask(config.model, LossConfig())
    with pytest.raises(UserError, match=r"optim\.image_lr_scale=0\.1 has no effect.*own model has no image encoder"):
        lr_scales(task.outline(), OptimConfig(image_lr_scale=0.1), task.spec)


def test_an_encoder_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    kind = written(tmp_path, ('prefix="words"', 'prefix="wrods"'))
    config = load_config(None, [f"model.kind={kind}"])
    with pytest.raises(UserError, match=r"'wrods'.*the model has image, words, text"):
        SegmentationTask(config.model, LossConfig()).outline()


def test_losses_of_each_expression_are_those_of_all() -> None:
    from mres.stream.batch import Batch

    config = load_config(None, ["model.image_size=32", f"model.kind={OWN}", "model.width=16"])
    task = SegmentationTask(config.model, LossConfig())
    model: nn.Module = task.build(0).eval()
    side = task.shape.grid
    batch = Batch(
        torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8),
        torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8),
        torch.randint(1, 1000, (2, 3, 17), dtype=torch.int32),
        torch.tensor([[True, True, False], [True, False, False]]),
    )
    with torch.no_grad():
        each = [float(losses["loss"]) for losses in task.losses_of_each(model, batch)]
        assert sum(each) == pytest.approx(float(task.losses(model, batch)["loss"]), rel=1e-5)
    assert each[2] == 0


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ('{"total": x.sum()}', ["losses give total", "'loss'"]),
        ('{"loss": x.sum(), "step": x.sum()}', ["'step'"]),
        ('{"loss": x.sum(), "loss_each": x}', ["'loss_each'"]),
    ],
)
def test_losses_that_would_be_taken_for_something_else_are_refused(
    tmp_path: Path, losses: str, words: list[str]
) -> None:
    change = "SPEC = ModelSpec(", f"SPEC = ModelSpec(losses=lambda x, target, valid, config: {losses},"
    config = load_config(None, [f"model.kind={written(tmp_path, change)}", "model.image_size=32", "model.width=16"])
    task = SegmentationTask(config.model, LossConfig())
    batch = empty_batch(2, 3, task.shape, shared=False)
    with pytest.raises(UserError) as refused:
        task.losses(task.build(0), batch)
    assert [word for word in words if word not in str(refused.value)] == []


@pytest.mark.parametrize(
    ("blocks", "word"),
    [
        ("[model, *model.blocks]", "the whole model"),
        ("[model.blocks[0], model.blocks[0]]", "'blocks.0' twice"),
        ("[model.blocks, model.blocks[0]]", "'blocks.0' inside 'blocks'"),
        ("[model.blocks[0].norm, model.blocks[0]]", "'blocks.0.norm' inside 'blocks.0'"),
        ("[nn.Identity()]", "Identity"),
        ("['blocks.0']", "'blocks.0'"),
    ],
)
def test_blocks_that_are_no_blocks_are_refused(tmp_path: Path, blocks: str, word: str) -> None:
    kind = written(tmp_path, ("blocks=lambda model: list(model.blocks)", f"blocks=lambda model: {blocks}"))
    task = SegmentationTask(load_config(None, [f"model.kind={kind}"]).model, LossConfig())
    with pytest.raises(UserError, match=word):
        task.blocks(task.outline())
