"""The image tower out of the files of timm and of all CLIPs.

Shapes: B images, N patches, S side, D width, P positions.
"""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from clip_files import (
    FORMS,
    PATCH,
    SIDE,
    TEXT,
    VISION,
    WIDTH,
    Towers,
    config_of,
    edit_json,
    image_tokens,
    load_tower,
    open_clip_of,
    timm_of,
    transformers_of,
    write_clip,
)  # fmt: skip
from open_clip.model import CustomTextCLIP, resize_pos_embed
from safetensors.torch import save_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from mres.checkpoint.store import CheckpointError
from mres.model.unires.config import UniresConfig
from mres.pretrained.tower import match_tower

PLAIN = {"vision_pre_norm": False, "quick_gelu": False}  # a ViT that is no CLIP's


def images(side: int = SIDE) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def loaded(path: Path, config: UniresConfig) -> tuple[Towers, Any]:
    model = Towers(config)
    return model, load_tower("image", model, config, path)


def check_same_tokens(model: Towers, theirs: nn.Module, side: int = SIDE) -> None:
    with torch.no_grad():
        tokens_BND = image_tokens(model.vision.vit, images(side))
        torch.testing.assert_close(tokens_BND, image_tokens(theirs, images(side)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_the_tower_computes_what_the_clips_own_does(form: str, tmp_path: Path) -> None:
    path, clip = write_clip(form, tmp_path)
    model, restored = loaded(path, config_of())
    check_same_tokens(model, clip)
    assert restored.tensors == restored.all_tensors == len(list(model.vision.vit.parameters()))
    assert not restored.changed


def test_a_clip_at_another_resolution_computes_what_open_clips_resized_one_does(tmp_path: Path) -> None:
    path, clip = write_clip("open_clip.pt", tmp_path)
    model, restored = loaded(path, config_of(image_size=48))
    larger, state = open_clip_of(side=48), clip.state_dict()
    resize_pos_embed(state, larger)
    larger.load_state_dict(state)
    check_same_tokens(model, larger, side=48)
    assert restored.changed == (
        "position embeddings of the patches: interpolated from 4×4 to 6×6 (bicubic, antialiased)",
    )


@pytest.mark.parametrize("side", [SIDE, 48, 24])
@pytest.mark.parametrize("kind", ["plain", "no class token", "no class position", "clip"])
def test_a_vit_of_timm_computes_what_timms_own_does(kind: str, side: int, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {
        "plain": {},
        "no class token": {"class_token": False, "global_pool": "avg", "fc_norm": False},
        "no class position": {"no_embed_class": True},
        "clip": {},
    }[kind]
    name = "vit_base_patch16_clip_quickgelu_224" if kind == "clip" else "vit_base_patch16_224"
    vit, larger = timm_of(name, **arguments), timm_of(name, **{**arguments, "img_size": side})
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    larger.load_state_dict(checkpoint_filter_fn(vit.state_dict(), larger))
    changes: dict[str, Any] = {} if kind == "clip" else dict(PLAIN)
    changes |= {"vision_class_token": kind != "no class token", "image_size": side}
    model, restored = loaded(tmp_path / "vit.safetensors", config_of(**changes))
    check_same_tokens(model, larger, side)
    assert restored.tensors == restored.all_tensors
    assert "head.* (2 tensors)" in restored.left_behind
    assert any("interpolated" in change for change in restored.changed) == (side != SIDE)


@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_pickled_vits_are_found_where_training_scripts_put_them(key: str | None, tmp_path: Path) -> None:
    vit = timm_of()
    state = {f"module._orig_mod.{name}": value.half() for name, value in vit.state_dict().items()}
    torch.save(state if key is None else {key: state, "epoch": 3}, tmp_path / "vit.bin")
    model, restored = loaded(tmp_path / "vit.bin", config_of(**PLAIN))
    check_same_tokens(model, vit.half().float())
    assert ("epoch" in restored.left_behind) == (key is not None)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_a_vit_of_timm_inside_open_clip(tmp_path: Path) -> None:
    vision = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token", "image_size": 224}
    clip = CustomTextCLIP(16, vision, TEXT).eval()
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    sizes = {"vision_width": 192, "vision_heads": 3, "vision_depth": 12, "patch_size": 16, "image_size": 224}
    model, restored = loaded(tmp_path / "clip.pt", config_of(**PLAIN, **sizes))
    check_same_tokens(model, clip.visual.trunk, side=224)
    assert restored.tensors == restored.all_tensors


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"vision_width": 64}, "set model.vision_width=128"),
        ({"vision_depth": 3}, "set model.vision_depth=2"),
        ({"vision_mlp_ratio": 2.0}, "set model.vision_mlp_ratio=4.0"),
        ({"patch_size": 16}, "set model.patch_size=8"),
        ({"stem": "conv"}, "set model.stem=patch"),
        ({"vision_class_token": False, "vision_pre_norm": False},
         "set model.vision_class_token=true model.vision_pre_norm=true"),
        ({"vision_heads": 4, "vision_quick_gelu": False}, "set model.vision_heads=2 model.vision_quick_gelu=true"),
    ],
)  # fmt: skip
def test_another_tower_is_named_with_all_keys_to_set(openai_file: Path, changes: dict[str, Any], remedy: str) -> None:
    config = config_of(**changes)
    with pytest.raises(CheckpointError, match=f"'{openai_file}' does not fit: it has .*; {remedy}"):
        load_tower("image", Towers(config), config, openai_file)


@pytest.fixture(scope="module")
def openai_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip("openai", tmp_path_factory.mktemp("clip"))[0]


def test_heads_and_activation_are_read_where_a_library_wrote_them(tmp_path: Path) -> None:
    transformers_of(act="gelu", num_attention_heads=4).save_pretrained(tmp_path / "hf")
    with pytest.raises(CheckpointError, match=r"set model.vision_heads=4 model.vision_quick_gelu=false$"):
        loaded(tmp_path / "hf", config_of())
    right = config_of(vision_heads=4, quick_gelu=False)
    assert not loaded(tmp_path / "hf" / "model.safetensors", right)[1].notes
    edit_json(tmp_path / "hf" / "config.json", model_type="siglip")
    with pytest.raises(CheckpointError, match=r"mres does not have: model_type 'siglip'.*config.json"):
        loaded(tmp_path / "hf", right)


def test_timms_own_config_is_read(tmp_path: Path) -> None:
    vit = timm_of(num_heads=4)
    timm.models.save_for_hf(vit, tmp_path / "vit", model_args={**_sizes(), "num_heads": 4}, safe_serialization=True)
    with pytest.raises(CheckpointError, match=r"set model.vision_heads=4 model.vision_quick_gelu=false$"):
        loaded(tmp_path / "vit", config_of(vision_pre_norm=False))
    model, restored = loaded(
        tmp_path / "vit", config_of(vision_pre_norm=False, vision_quick_gelu=False, vision_heads=4)
    )
    check_same_tokens(model, vit)
    assert "it learned from images of mean (0.5, 0.5, 0.5)" in restored.notes[0]


def _sizes() -> dict[str, int]:
    return {"img_size": SIDE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": 2}


def test_open_clips_own_config_is_read(tmp_path: Path) -> None:
    save_file(open_clip_of().state_dict(), tmp_path / "open_clip_model.safetensors")
    config = {"vision_cfg": {**VISION, "head_width": 32}, "text_cfg": TEXT, "quick_gelu": True}
    (tmp_path / "open_clip_config.json").write_text("{}")
    edit_json(tmp_path / "open_clip_config.json", model_cfg=config)
    with pytest.raises(CheckpointError, match=r"set model.vision_heads=4$"):
        loaded(tmp_path, config_of())
    edit_json(
        tmp_path / "open_clip_config.json", model_cfg={**config, "vision_cfg": {**VISION, "act_kwargs": {"a": 1}}}
    )
    with pytest.raises(CheckpointError, match=r"mres does not have: act_kwargs"):
        loaded(tmp_path, config_of())


def test_what_only_looks_alike_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save(timm_of(init_values=0.1).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"4 are unknown \['blocks.0.ls1.gamma'"):
        loaded(path, config_of(**PLAIN))
    torch.save(timm_of(global_pool="avg").state_dict(), path)  # its last norm comes after the mean of all patches
    with pytest.raises(CheckpointError, match=r"2 tensors are missing \['norm.bias', 'norm.weight'\], 2 are unknown"):
        loaded(path, config_of(**PLAIN))
    torch.save(open_clip_of(layers=[1, 1, 1, 1], width=16, head_width=16).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"other.pt' has no ViT \(.*; it has .*visual.\*"):
        loaded(path, config_of())
    torch.save(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"other.pt' has no ViT \(.*; it has weight, bias"):
        loaded(path, config_of())


def test_less_than_strict_takes_what_fits_and_says_what_did_not(tmp_path: Path) -> None:
    torch.save(timm_of(init_values=0.1).state_dict(), tmp_path / "vit.pt")
    config = config_of(**PLAIN, vision_depth=3, split_block=1, vision_class_token=False)
    model = Towers(config)
    before = {name: value.clone() for name, value in model.vision.vit.named_parameters()}
    matched = match_tower("image", model, config, tmp_path / "vit.pt", strict=False)
    names = {name.removeprefix("vision.vit.") for name, _ in matched}
    restored = matched.restored
    assert set(restored.kept) == {name for name in before if name.startswith("blocks.2.")} == set(before) - names
    assert "blocks.* (4 tensors)" in restored.left_behind
    assert "cls_token" in restored.left_behind
    assert "without the class token's" in restored.changed[0]
    assert "keep their first values: blocks.2." in str(restored)
    narrow = config_of(**PLAIN, vision_width=64)
    with pytest.raises(CheckpointError, match=r"set model.vision_width=128"):
        match_tower("image", Towers(narrow), narrow, tmp_path / "vit.pt", strict=False)
