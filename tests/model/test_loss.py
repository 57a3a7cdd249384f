"""Binary cross-entropy and Dice against plain numpy.

Shapes: B images, K expressions an image, h×w the grid of logits.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mres.errors import UserError
from mres.model.config import LossConfig
from mres.model.loss import mask_losses


def naive(logits_hw: np.ndarray, target_hw: np.ndarray) -> tuple[float, float]:
    """(BCE, Dice) of one mask in float64."""
    p_hw = 1 / (1 + np.exp(-logits_hw))
    bce = -(target_hw * np.log(p_hw) + (1 - target_hw) * np.log(1 - p_hw)).mean()
    dice = 1 - (2 * (p_hw * target_hw).sum() + 1) / (p_hw.sum() + target_hw.sum() + 1)
    return float(bce), float(dice)


@given(st.integers(0, 10_000), st.floats(0, 3), st.floats(0.1, 3))
def test_sums_over_the_valid_expressions(seed: int, bce_weight: float, dice_weight: float) -> None:
    random = np.random.default_rng(seed)
    logits_BKhw = random.normal(0, 3, (2, 3, 5, 4))
    target_BKhw = random.random((2, 3, 5, 4)) * (random.random((2, 3, 5, 4)) < 0.5)
    valid_BK = random.random((2, 3)) < 0.6
    config = LossConfig(bce_weight=bce_weight, dice_weight=dice_weight)
    found = mask_losses(*(torch.from_numpy(a) for a in (logits_BKhw, target_BKhw, valid_BK)), config)
    pairs = [naive(logits_BKhw[b, k], target_BKhw[b, k]) for b in range(2) for k in range(3) if valid_BK[b, k]]
    bce, dice = (sum(pair[i] for pair in pairs) for i in (0, 1))
    assert float(found["loss_bce"]) == pytest.approx(bce, rel=1e-4, abs=1e-5)
    assert float(found["loss_dice"]) == pytest.approx(dice, rel=1e-4, abs=1e-5)
    assert float(found["loss"]) == pytest.approx(bce_weight * bce + dice_weight * dice, rel=1e-4, abs=1e-5)
    assert all(value.dtype == torch.float64 for value in found.values()), "as the logits are"
    for logits_dtype in (torch.float32, torch.bfloat16):
        less = mask_losses(
            torch.from_numpy(logits_BKhw).to(logits_dtype),
            torch.from_numpy(target_BKhw).float(),
            torch.from_numpy(valid_BK),
            config,
        )
        assert all(value.dtype == torch.float32 for value in less.values()), "never less than float32"


def test_what_is_not_valid_has_no_gradient_and_large_logits_stay_finite() -> None:
    logits_BKhw = torch.full((1, 2, 4, 4), 1e4, requires_grad=True)
    found = mask_losses(logits_BKhw, torch.zeros(1, 2, 4, 4), torch.tensor([[True, False]]), LossConfig())
    found["loss"].backward()
    assert torch.isfinite(found["loss"])
    assert logits_BKhw.grad is not None
    assert logits_BKhw.grad[0, 0].any()
    assert not logits_BKhw.grad[0, 1].any()


def test_an_empty_mask_is_learned_too_and_a_perfect_one_costs_nothing() -> None:
    logits_BKhw = torch.zeros(1, 1, 4, 4, requires_grad=True)
    mask_losses(logits_BKhw, torch.zeros(1, 1, 4, 4), torch.ones(1, 1, dtype=torch.bool), LossConfig(bce_weight=0))[
        "loss"
    ].backward()
    assert (logits_BKhw.grad > 0).all(), "probabilities go down"
    target_BKhw = torch.eye(4)[None, None]
    perfect = mask_losses(40 * (2 * target_BKhw - 1), target_BKhw, torch.ones(1, 1, dtype=torch.bool), LossConfig())
    assert float(perfect["loss"]) == pytest.approx(0, abs=1e-6)


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits_BKhw = torch.randn(1, 2, 64, 64, generator=torch.Generator().manual_seed(0))
    target_BKhw, valid_BK = (logits_BKhw > 1).float(), torch.ones(1, 2, dtype=torch.bool)
    exact = mask_losses(logits_BKhw.bfloat16().float(), target_BKhw, valid_BK, LossConfig())
    found = mask_losses(logits_BKhw.bfloat16(), target_BKhw, valid_BK, LossConfig())
    assert torch.equal(found["loss"], exact["loss"])


def test_logits_of_another_shape_are_refused_though_they_are_as_many() -> None:
    with pytest.raises(UserError, match=r"\(2, 3, 2, 8\).*\(2, 3, 4, 4\)"):
        mask_losses(torch.zeros(2, 3, 2, 8), torch.zeros(2, 3, 4, 4), torch.ones(2, 3), LossConfig())
