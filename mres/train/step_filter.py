"""Which steps are not made: judged on the device, looked at when figures are read, named, and counted against budgets."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mres.config import Config
from mres.errors import UserError
from mres.parallel.strategy import Strategy
from mres.run_folder import BAD_STEPS, RunLog
from mres.stream.batch import Batch
from mres.train.progress import Progress
from mres.train.rollback import DivergenceError
from mres.train.spikes import NONE, REASONS, SpikeDetector

_NOT_FINITE = "loss or gradient is not finite"


class Judgement:
    """What is known of a step on the device before it is made; `may_move` is what `Strategy.step` asks."""

    def __init__(self, step: int, loss: Tensor, spikes: SpikeDetector | None) -> None:
        self.step, self.loss, self._spikes = step, loss, spikes
        self.spike: Tensor | None = None

    def may_move(self, norm: Tensor) -> Tensor:
        # Its own look, as the gradient of a loss that is not finite may be: where the loss is infinite and flat.
        finite = torch.isfinite(self.loss)
        if self._spikes is None:
            return finite
        self.spike = self._spikes.judge(self.step, norm, self.loss)
        return finite & (self.spike == NONE)


@dataclass(frozen=True, slots=True)
class _Step:
    """What is kept of a step until its figures are read: tensors on the device, ids on the host."""

    number: int
    batch_index: int
    norm: Tensor
    loss: Tensor
    spike: Tensor | None
    image_ids: tuple[str, ...]
    expression_ids: tuple[str, ...]


class SkipPolicy:
    """Refuses steps that are not finite or spikes, and ends the course of a run that has too many of them."""

    def __init__(self, config: Config, strategy: Strategy, log: RunLog, progress: Progress) -> None:
        """`progress` is what was counted before; it goes on being counted in place."""
        self._config, self._strategy, self._log, self._progress = config, strategy, log, progress
        self._unread: deque[_Step] = deque()
        self._in_a_row = 0
        self._spike_steps: deque[int] = deque()
        self._trouble: tuple[str, int] | None = None
        factor = config.train.spike_factor
        self._spikes: SpikeDetector | None = None
        if factor is not None:
            self._spikes = SpikeDetector(factor, config.train.spike_window, strategy.world.device)
            self._spikes.load(progress.recent)

    def judge(self, step: int, loss: Tensor) -> Judgement:
        """Of step `step` (from 0), before it is made; `loss` is this rank's share of the global batch's."""
        return Judgement(step, self._strategy.all_reduce(loss.to(torch.float64, copy=True)), self._spikes)

    def note(self, judgement: Judgement, norm: Tensor, batch: Batch) -> None:
        """Keeps what `read` will look at, of a step that was made or not."""
        step, loss, spike = judgement.step, judgement.loss, judgement.spike
        ids = batch.image_ids, batch.expression_ids
        self._unread.append(_Step(step + 1, self._progress.batch_index(step), norm, loss, spike, *ids))

    def read(self) -> float:
        """Reads the figures of the steps since the last look; returns the last one's gradient norm.

        Raises:
            DivergenceError: too many of them were skipped.
        """
        norm = float("nan")
        last = self._unread[-1].number if self._unread else 0
        while self._unread:
            step = self._unread.popleft()
            norm = float(step.norm)
            if not (math.isfinite(norm) and math.isfinite(step.loss)):
                self._not_finite(step, norm)
            else:
                self._in_a_row = 0
                if step.spike is not None and int(step.spike) != NONE:
                    self._spike(step, norm, int(step.spike))
        if self._trouble is not None:
            raise DivergenceError(*self._trouble, reached=last)
        return norm

    def remember(self) -> None:
        """Brings what the next checkpoint must know into the progress; waits for the device."""
        if self._spikes is not None:
            self._progress.recent = self._spikes.to_json()

    def _not_finite(self, step: _Step, norm: float) -> None:
        self._progress.bad_steps += 1
        self._in_a_row += 1
        self._report(step, norm, _NOT_FINITE)
        allowed = self._config.train.max_bad_steps
        if self._in_a_row > allowed:
            message = (
                f"{self._in_a_row} steps in a row up to step {step.number} had a loss or gradient that is not finite "
                f"(train.max_bad_steps={allowed}); {_remedy(self._config.run_dir)}"
            )
            self._trouble = message, step.number - self._in_a_row

    def _spike(self, step: _Step, norm: float, code: int) -> None:
        config, recent = self._config.train, self._spike_steps
        self._progress.spikes += 1
        self._report(step, norm, REASONS[code])
        recent.append(step.number)
        while recent[0] <= step.number - config.spike_window:
            recent.popleft()
        if len(recent) > config.max_spikes:
            message = (
                f"{len(recent)} of the {config.spike_window} steps up to step {step.number} were spikes: loss or gradient "
                f"norm above {config.spike_factor:g} times the median (train.max_spikes={config.max_spikes}); "
                f"{_remedy(self._config.run_dir)}"
            )
            self._trouble = message, recent[0] - 1

    def _report(self, step: _Step, norm: float, reason: str) -> None:
        ranks = self._strategy.gather_object((step.image_ids, step.expression_ids)) or []
        line: dict[str, Any] = {
            "step": step.number,
            "batch": step.batch_index,
            "reason": reason,
            "grad_norm": norm,
            "loss": float(step.loss),
            "image_ids": [i for images, _ in ranks for i in images],
            "expression_ids": [e for _, expressions in ranks for e in expressions],
        }
        self._log.append(BAD_STEPS, line)
        self._log.say(f"warning: step {step.number}: {reason}; the step was skipped on all ranks")


def nothing_made(steps: int, run_dir: Path) -> UserError:
    """A run that has come to its end without a step that moved a weight."""
    return UserError(
        f"all {steps} steps of the run were skipped, so no weight has moved and there is nothing to keep; {_remedy(run_dir)}"
    )


def _remedy(run_dir: Path) -> str:
    """Where to look, after steps that were skipped."""
    return (
        f"their images and expressions are in {run_dir / BAD_STEPS}; lower optim.lr or look at those images "
        f"(python tools/replay.py {run_dir} --step N)"
    )
