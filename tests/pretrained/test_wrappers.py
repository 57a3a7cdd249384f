"""What stands before tensors' names is taken off, in any order and depth; what could be meant twice is named."""

from pathlib import Path

import pytest
import torch
from clip_files import Towers, config_of, load_tower, open_clip_of
from safetensors.torch import save_file
from tiny_model import outline
from torch import Tensor
from toy_training import model_config, model_of

from mres.formats.folder import CheckpointError
from mres.pretrained.whole import match_weights
from mres.pretrained.wrappers import plain_name

WRAPPERS = (
    "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module.", "_orig_mod.module._orig_mod.",
    "model.", "model.module.", "teacher.backbone.", "student.", "ema.", "state_dict_ema.module.", "net._orig_mod.model.",
)  # fmt: skip


@pytest.fixture(scope="module")
def clip() -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in open_clip_of().state_dict().items()}


@pytest.mark.parametrize("wrapper", ["", *WRAPPERS])
def test_a_tower_is_found_behind_what_all_its_tensors_share(wrapper: str, clip, tmp_path: Path) -> None:
    path = tmp_path / "wrapped.safetensors"
    others = {"epoch": torch.ones(1), "loss.weight": torch.ones(2)}
    save_file({wrapper + name: tensor.clone() for name, tensor in clip.items()} | others, path)
    for which in ("text", "image"):
        restored = load_tower(which, Towers(config_of()), config_of(), path)
        assert restored.tensors == restored.all_tensors > 10


@pytest.mark.parametrize(
    "outer",
    [
        ("state_dict",),
        ("model", "state_dict"),
        ("state_dict_ema",),
        ("teacher",),
        ("a", "b", "c"),
        ("model_ema", "module"),
    ],
)
def test_dictionaries_in_dictionaries_are_prefixes_too(outer: tuple[str, ...], clip, tmp_path: Path) -> None:
    saved: dict = {f"module.{name}": tensor for name, tensor in clip.items()}
    for key in reversed(outer):
        saved = {key: saved, "epoch": 3}
    torch.save(saved, tmp_path / "nested.pt")
    restored = load_tower("text", Towers(config_of()), config_of(), tmp_path / "nested.pt")
    assert restored.tensors == restored.all_tensors


def test_parts_that_were_wrapped_alone(clip, tmp_path: Path) -> None:
    """torch.compile, FSDP and recomputing of blocks."""
    names = {
        name: name.replace("resblocks.0.", "resblocks.0._orig_mod.").replace("mlp.", "_checkpoint_wrapped_module.mlp.")
        for name in clip
    }
    assert sum(name != new for name, new in names.items()) > 10
    torch.save({names[name]: tensor for name, tensor in clip.items()}, tmp_path / "compiled.pt")
    restored = load_tower("image", Towers(config_of()), config_of(), tmp_path / "compiled.pt")
    assert restored.tensors == restored.all_tensors


@pytest.mark.parametrize("roots", [("teacher.", "student."), ("teacher.backbone.", "student.backbone.")])
def test_a_tower_that_is_there_twice_is_named(roots: tuple[str, str], clip, tmp_path: Path) -> None:
    torch.save({root + name: tensor for root in roots for name, tensor in clip.items()}, tmp_path / "two.pt")
    with pytest.raises(CheckpointError, match=r"ambiguous.*'student\..*'.*'teacher\."):
        load_tower("text", Towers(config_of()), config_of(), tmp_path / "two.pt")
    torch.save(clip | {f"module.{name}": tensor for name, tensor in clip.items()}, tmp_path / "same.pt")
    with pytest.raises(CheckpointError, match=r"ambiguous.*module"):
        load_tower("text", Towers(config_of()), config_of(), tmp_path / "same.pt")


def test_weights_and_their_average_are_what_they_are_called(clip, tmp_path: Path) -> None:
    """timm's: the weights are taken, and the report says that there is another."""
    torch.save({"state_dict": clip, "state_dict_ema": clip}, tmp_path / "timm.pt")
    restored = load_tower("text", Towers(config_of()), config_of(), tmp_path / "timm.pt")
    assert "state_dict_ema" in restored.left_behind


@pytest.mark.parametrize("wrapper", ["", *WRAPPERS])
def test_a_whole_model_is_found_too(wrapper: str, tmp_path: Path) -> None:
    weights = {name: parameter.detach() for name, parameter in model_of(3).named_parameters()}
    save_file({wrapper + name: value.clone() for name, value in weights.items()}, tmp_path / "model.safetensors")
    matched = match_weights(outline(model_config()), model_config(), tmp_path / "model.safetensors")
    found = dict(matched)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_a_whole_model_that_is_there_twice_is_named(tmp_path: Path) -> None:
    weights = {name: parameter.detach() for name, parameter in model_of(3).named_parameters()}
    both = {root + name: value.clone() for root in ("ema.", "model.") for name, value in weights.items()}
    save_file(both, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"ambiguous.*'ema\.', 'model\.'"):
        match_weights(outline(model_config()), model_config(), tmp_path / "model.safetensors")
    save_file({"x.a": torch.ones(1), "y.b": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="does not fit"):
        match_weights(outline(model_config()), model_config(), tmp_path / "model.safetensors")


def test_a_name_of_ones_own_keeps_its_parts() -> None:
    assert plain_name("blocks.0.module.weight") == "blocks.0.module.weight"
    assert plain_name("module.module.blocks.0._orig_mod.weight") == "blocks.0.weight"
