"""The named sizes: `base` and `large` have the shapes of CLIP ViT-B/16 and ViT-L/14, so that released weights fit."""

import pytest
import torch

from mres.model.unires.config import SIZES, UniresConfig
from mres.model.unires.unires import UniRES

# From the released models: width, depth, heads, patch of the image tower; width, depth, heads of the text tower.
CLIP = {"base": (768, 12, 12, 16, 512, 12, 8), "large": (1024, 24, 16, 14, 768, 12, 12)}


@pytest.fixture(scope="module", params=CLIP)
def size(request: pytest.FixtureRequest) -> tuple[str, dict[str, tuple[int, ...]], UniRES]:
    """(name, shapes of the parameters, model without memory)."""
    with torch.device("meta"):
        model = UniRES(UniresConfig.model_validate({"size": request.param}))
    return request.param, {name: tuple(p.shape) for name, p in model.named_parameters()}, model


def test_the_image_tower_is_clips(size: tuple[str, dict[str, tuple[int, ...]], UniRES]) -> None:
    name, shapes, model = size
    width, depth, heads, patch, *_ = CLIP[name]
    assert shapes["vision.vit.patch_embed.proj.weight"] == (width, 3, patch, patch)
    assert "vision.vit.patch_embed.proj.bias" not in shapes, "CLIP's patch embedding has none"
    assert shapes["vision.vit.cls_token"] == (1, 1, width)
    assert shapes["vision.vit.norm_pre.weight"] == (width,)
    for block in range(depth):
        inside = f"vision.vit.blocks.{block}"
        assert shapes[f"{inside}.attn.qkv.weight"] == (3 * width, width)
        assert shapes[f"{inside}.mlp.fc1.weight"] == (4 * width, width)
    assert f"vision.vit.blocks.{depth}.norm1.weight" not in shapes
    assert model.vision.vit.blocks[0].attn.num_heads == heads
    patches = (448 // patch) ** 2
    assert shapes["vision.vit.pos_embed"] == (1, patches + 1, width)


def test_the_text_tower_is_open_clips(size: tuple[str, dict[str, tuple[int, ...]], UniRES]) -> None:
    """Name by name against the tower that open_clip itself builds for that model."""
    from open_clip import get_model_config
    from open_clip.transformer import TextTransformer

    name, shapes, model = size
    theirs = get_model_config({"base": "ViT-B-16", "large": "ViT-L-14"}[name])["text_cfg"]
    *_, width, depth, heads = CLIP[name]
    assert (theirs["width"], theirs["layers"], theirs["heads"]) == (width, depth, heads)
    with torch.device("meta"):
        tower = TextTransformer(**theirs, output_dim=None)
    expected = {n: tuple(p.shape) for n, p in tower.named_parameters()}
    found = {n.removeprefix("text.tower."): s for n, s in shapes.items() if n.startswith("text.tower.")}
    assert found.keys() == expected.keys()
    differ = {n for n in expected if found[n] != expected[n]}
    assert differ == {"positional_embedding"}
    assert found["positional_embedding"] == (model.text.tower.context_length, width)
    assert model.text.tower.transformer.resblocks[0].attn.num_heads == heads


def test_base_and_large_have_about_the_parameters_of_their_towers(
    size: tuple[str, dict[str, tuple[int, ...]], UniRES],
) -> None:
    name, _, model = size
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    towers = {"base": 150, "large": 428}[name]  # CLIP's own counts
    assert towers < millions < 1.35 * towers


def test_the_demos_size_is_small() -> None:
    with torch.device("meta"):
        model = UniRES(UniresConfig.model_validate({"size": "tiny"}))
    assert sum(p.numel() for p in model.parameters()) < 2.5e6


def test_every_size_sets_the_same_keys() -> None:
    assert len({frozenset(values) for values in SIZES.values()}) == 1
    for size in SIZES:
        filled = UniresConfig.model_validate({"size": size})
        assert filled.split_block == filled.vision_depth // 2
        assert UniresConfig.model_validate({"size": size, "vision_depth": 8}).split_block == 4
