"""Steps whose loss or gradient norm stands out: seen on the device, before the optimizer moves, without a host that waits.

Shapes: W steps of the window.
"""

from __future__ import annotations

import torch
from torch import Tensor

# What `judge` answers, as a number on the device.
NONE, NORM, LOSS, BOTH = range(4)
REASONS = {
    NORM: "the gradient norm is a spike",
    LOSS: "the loss is a spike",
    BOTH: "loss and gradient norm are spikes",
}


class SpikeDetector:
    """Compares norm and loss with `factor` times their medians over the last `window` steps that were not skipped.

    Nothing is a spike before half a window has been seen. A step that is skipped leaves a gap in the window, so that where
    training has come to another level for good the old one is forgotten and the new one taken.
    """

    def __init__(self, factor: float, window: int, device: torch.device) -> None:
        self._factor, self._window = factor, window
        self._recent_2W = torch.full((2, window), torch.nan, dtype=torch.float64, device=device)

    def judge(self, step: int, norm: Tensor, loss: Tensor) -> Tensor:
        """What of step `step` is a spike; called once a step with scalars that are the same on every rank."""
        value_2 = torch.stack([norm.double(), loss.double()])
        high_2 = value_2 > self._factor * self._median_2()  # nothing is above a median that is NaN
        skipped = high_2.any() | ~torch.isfinite(value_2).all()
        self._recent_2W[:, step % self._window] = torch.where(skipped, torch.nan, value_2)
        return high_2[0] * NORM + high_2[1] * LOSS

    def _median_2(self) -> Tensor:
        """Lower medians; NaN where the window is less than half full."""
        sorted_2W = self._recent_2W.sort(dim=1).values  # NaN last
        number_2 = (~torch.isnan(sorted_2W)).sum(dim=1)
        median_2 = sorted_2W.gather(1, ((number_2 - 1) // 2).clamp(min=0)[:, None])[:, 0]
        return torch.where(2 * number_2 >= self._window, median_2, torch.nan)

    def to_json(self) -> list[list[float | None]]:
        """The window, for a checkpoint; waits for the device."""
        return [[None if value != value else value for value in row] for row in self._recent_2W.tolist()]

    def load(self, recent: list[list[float | None]] | None) -> None:
        """Takes a window from a checkpoint; one of another size, or none, leaves an empty one."""
        self._recent_2W.fill_(torch.nan)
        if recent is not None and len(recent[0]) == self._window:
            values = [[torch.nan if value is None else value for value in row] for row in recent]
            self._recent_2W.copy_(torch.tensor(values, dtype=torch.float64))
