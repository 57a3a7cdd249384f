"""What may refuse a step that DeepSpeed is about to make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mres.parallel.strategy import StepFilter


class StepFilterHook:
    """Asks once a step, when DeepSpeed has the norm and calls the optimizer the first time, without waiting for the device.

    DeepSpeed itself skips a step whose norm is not finite and then never calls the optimizer: it is asked all the same.
    """

    def __init__(self, optimizer: torch.optim.AdamW, norm: Callable[[], Tensor]) -> None:
        self._optimizer, self._norm = optimizer, norm
        self._step_filter: StepFilter | None = None
        self._refused: Tensor | None = None
        optimizer.register_step_pre_hook(self._before_step)

    @contextmanager
    def asking(self, step_filter: StepFilter | None) -> Iterator[None]:
        """Around DeepSpeed's step."""
        self._step_filter, self._refused = step_filter, None
        yield
        if step_filter is not None and self._refused is None:
            step_filter(self._norm())

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._step_filter is not None and self._refused is None:
            home = next(p for group in self._optimizer.param_groups for p in group["params"]).device
            self._refused = (~self._step_filter(self._norm())).float().to(home)
        # The fused kernel reads this flag where the weights are, and leaves them, moments and step count alone at 1.
        self._optimizer.found_inf = self._refused  # type: ignore[attr-defined]
