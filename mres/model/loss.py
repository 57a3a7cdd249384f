"""Binary cross-entropy and Dice on mask logits.

Shapes: B images, K expressions an image, h×w the grid of logits.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mres.errors import UserError
from mres.model.config import LossConfig


def mask_losses(logits_BKhw: Tensor, target_BKhw: Tensor, valid_BK: Tensor, config: LossConfig) -> dict[str, Tensor]:
    """Sums (not means) over the valid expressions of "loss", "loss_bce" and "loss_dice", in float32 (float64 of float64).

    The caller divides by the number of valid expressions of the whole global batch, accumulation included, so that
    neither ranks nor micro-batches change what an expression weighs. `target` is the covered share of each logit's
    cell, 0…1. Dice with +1 smoothing (Milletari et al. 2016), so that an empty mask has a gradient too.

    Raises:
        UserError: logits of another shape than the target.
    """
    if logits_BKhw.shape != target_BKhw.shape:
        raise UserError(
            f"the model's logits are of shape {tuple(logits_BKhw.shape)}, and {tuple(target_BKhw.shape)} is due (images, "
            "expressions, height, width of the grid): what its spec's forward gives does not fit its shape"
        )
    dtype = torch.promote_types(logits_BKhw.dtype, torch.float32)
    logits = logits_BKhw.to(dtype).flatten(2)
    target = target_BKhw.to(dtype).flatten(2)
    valid = valid_BK.to(dtype)
    bce = (F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=-1) * valid).sum()
    probability = logits.sigmoid()
    overlap = (probability * target).sum(dim=-1)
    dice_BK = 1 - (2 * overlap + 1) / (probability.sum(dim=-1) + target.sum(dim=-1) + 1)
    dice = (dice_BK * valid).sum()
    loss = config.bce_weight * bce + config.dice_weight * dice
    return {"loss": loss, "loss_bce": bce.detach(), "loss_dice": dice.detach()}
