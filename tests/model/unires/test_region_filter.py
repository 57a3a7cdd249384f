"""The Language-guided Region Filter against the paper's figure.

Shapes: B images, K expressions an image, G group tokens, T words, C decoder width.
"""

import pytest
import torch
from tiny_model import config_of
from torch import Tensor

from mres.model.unires.filter import LanguageGuidedRegionFilter

FIGURE = {"filter_softmax": False, "filter_scale": False, "filter_norm": False}


def make(**changes) -> LanguageGuidedRegionFilter:
    torch.manual_seed(0)
    return LanguageGuidedRegionFilter(config_of(**changes)).double().eval()


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    groups_BKGC = torch.randn(2, 3, 4, 32, generator=draw, dtype=torch.float64)
    words_BKTC = torch.randn(2, 3, 6, 32, generator=draw, dtype=torch.float64)
    is_word_BKT = torch.arange(6) < torch.tensor([[2, 6, 3], [4, 1, 5]])[:, :, None]
    return groups_BKGC, words_BKTC, is_word_BKT


@torch.no_grad()
def test_with_all_options_off_it_is_the_figure() -> None:
    """A = G ⊗ T, R = A ⊗ T, G' = G ⊕ R, out = G' ⊕ FFN(G'), summed by hand over the words that are there."""
    layer = make(**FIGURE)
    groups_BKGC, words_BKTC, is_word_BKT = inputs()
    there_BKTC = words_BKTC * is_word_BKT[..., None]
    a_BKGT = torch.einsum("bkgc,bktc->bkgt", groups_BKGC, there_BKTC)
    r_BKGC = torch.einsum("bkgt,bktc->bkgc", a_BKGT, there_BKTC)
    first, gelu, second = layer.ffn
    summed = groups_BKGC + r_BKGC
    ffn = torch.nn.functional.gelu(summed @ first.weight.T + first.bias) @ second.weight.T + second.bias
    assert isinstance(gelu, torch.nn.GELU)
    assert torch.allclose(layer(groups_BKGC, words_BKTC, is_word_BKT), summed + ffn, atol=1e-12)


@torch.no_grad()
def test_the_defaults_are_softmax_scale_and_norm() -> None:
    layer = make()
    groups_BKGC, words_BKTC, is_word_BKT = inputs()
    normed = torch.nn.functional.layer_norm(groups_BKGC, (32,))
    a_BKGT = torch.einsum("bkgc,bktc->bkgt", normed, words_BKTC) / 32**0.5
    weights_BKGT = torch.where(is_word_BKT[:, :, None], a_BKGT.exp(), 0.0)
    weights_BKGT = weights_BKGT / weights_BKGT.sum(-1, keepdim=True)
    summed = groups_BKGC + torch.einsum("bkgt,bktc->bkgc", weights_BKGT, words_BKTC)
    expected = summed + layer.ffn(torch.nn.functional.layer_norm(summed, (32,)))
    assert torch.allclose(layer(groups_BKGC, words_BKTC, is_word_BKT), expected, atol=1e-12)


@pytest.mark.parametrize("changes", [{}, FIGURE, {"filter_norm": False}, {"filter_scale": False}])
@torch.no_grad()
def test_padding_words_weigh_nothing(changes: dict) -> None:
    layer = make(**changes)
    groups_BKGC, words_BKTC, is_word_BKT = inputs()
    expected = layer(groups_BKGC, words_BKTC, is_word_BKT)
    words_BKTC[~is_word_BKT] = 1e6
    assert torch.allclose(layer(groups_BKGC, words_BKTC, is_word_BKT), expected, atol=1e-9)


@torch.no_grad()
def test_one_word_is_added_to_every_group() -> None:
    layer = make()
    layer.ffn[2].weight.zero_()
    layer.ffn[2].bias.zero_()
    groups_BKGC, words_BKTC, is_word_BKT = inputs()
    found_GC = layer(groups_BKGC, words_BKTC, is_word_BKT)[1, 1]
    assert torch.allclose(found_GC, groups_BKGC[1, 1] + words_BKTC[1, 1, 0], atol=1e-12)
