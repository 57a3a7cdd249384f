"""Group tokens enter and leave where the config says.

Shapes: B images, N patches, D encoder width, L low- and G high-level group tokens, h×w the grid of logits.
"""

import pytest
import torch
from tiny_model import CLIP_LIKE, build, config_of, inputs

from mres.model.unires.vision import VisionEncoder


def encoder(**changes) -> VisionEncoder:
    torch.manual_seed(0)
    return VisionEncoder(config_of(**changes)).eval()


@pytest.mark.parametrize("changes", [{}, CLIP_LIKE, {"mask_stride": 8}])
@pytest.mark.parametrize(("low", "high"), [(5, 2), (1, 1)])
@torch.no_grad()
def test_shapes(changes: dict, low: int, high: int) -> None:
    model = encoder(low_group_tokens=low, high_group_tokens=high, **changes)
    patches_BND, low_BLD, high_BGD, detail_BShw = model(inputs()[0])
    assert patches_BND.shape == (2, 16, 32)
    assert low_BLD.shape == (2, low, 32)
    assert high_BGD.shape == (2, high, 32)
    assert detail_BShw.shape[-2:] == (32 // changes.get("mask_stride", 2),) * 2


@pytest.mark.parametrize("split", [1, 2, 3])
@torch.no_grad()
def test_each_level_meets_its_own_blocks(split: int) -> None:
    """Low-level tokens pass through blocks 1 … split_block, high-level ones through the rest, beside all patches."""
    model = encoder(vision_depth=4, split_block=split, low_group_tokens=5, high_group_tokens=2)
    lengths: list[int] = []
    for block in model.vit.blocks:
        block.register_forward_hook(lambda module, given, out: lengths.append(given[0].shape[1]))
    model(inputs()[0])
    assert lengths == [16 + 5] * split + [16 + 2] * (4 - split)


@torch.no_grad()
def test_low_level_tokens_change_what_comes_after_them_and_high_level_ones_do_not_change_them() -> None:
    model = encoder(vision_depth=4, split_block=2)
    image_BCSS = inputs()[0]
    patches, low, high, detail = model(image_BCSS)
    model.high_group_GD.add_(torch.randn(3, 32))
    changed = model(image_BCSS)
    assert torch.equal(changed[1], low), "the low level has left before"
    assert not torch.allclose(changed[2], high, atol=1e-3)
    assert not torch.allclose(changed[0], patches, atol=1e-4)
    assert torch.equal(changed[3], detail)
    model.low_group_LD.add_(torch.randn(4, 32))
    assert not torch.allclose(model(image_BCSS)[1], low, atol=1e-3)


@torch.no_grad()
def test_group_tokens_differ_from_the_start() -> None:
    _, low_BLD, high_BGD, _ = encoder()(inputs()[0])
    for groups_BGD in (low_BLD, high_BGD):
        assert torch.pdist(groups_BGD[0]).min() > 0.1


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
@torch.no_grad()
def test_the_mask_head_puts_every_pixel_in_its_place(stride: int) -> None:
    """With one kernel for all patches a logit is the product of that kernel and the pixel embedding at its place."""
    head = build(mask_stride=stride, dtype=torch.float64).head
    random = torch.Generator().manual_seed(0)
    head.kernel.weight.zero_()
    head.kernel.bias.copy_(torch.randn(9, generator=random))
    side = 32 // stride
    detail_BShw = torch.randn(2, head.from_detail.in_channels, side, side, generator=random, dtype=torch.float64)
    patches_BNC = torch.randn(2, 16, 32, generator=random, dtype=torch.float64)
    logits_Xhw = head(patches_BNC.repeat_interleave(3, 0), head.pixels(detail_BShw, patches_BNC))
    coarse_BEgg = head.from_patches(patches_BNC).transpose(1, 2).reshape(2, 8, 4, 4)
    coarse_BEhw = torch.nn.functional.interpolate(coarse_BEgg, size=(side, side), mode="bilinear")
    pixels_BEhw = torch.nn.functional.gelu(head.norm(head.mix(head.from_detail(detail_BShw) + coarse_BEhw)))
    expected_Bhw = torch.einsum("behw,e->bhw", pixels_BEhw, head.kernel.bias[:8]) / 8**0.5 + head.kernel.bias[8]
    assert torch.allclose(logits_Xhw, expected_Bhw.repeat_interleave(3, 0), atol=1e-12)
