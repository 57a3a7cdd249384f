"""Evaluations while a run trains: one that a stop or a kill keeps from its end is owed, and made first by who goes on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from mres.config import Config
from mres.model.task import SegmentationTask
from mres.run_folder import EVALUATIONS, RunLog
from mres.stream.sets import open_set
from mres.supervise.stop_request import StopRequest

if TYPE_CHECKING:
    from mres.parallel.strategy import Strategy


class Evaluations:
    """Those of one run, on all ranks together.

    Attributes:
        owed: one was due, and is not made.
    """

    def __init__(
        self,
        config: Config,
        task: SegmentationTask,
        strategy: Strategy,
        log: RunLog,
        stop: StopRequest,
        tell: Callable[[int, dict[str, Any] | None], None],
    ) -> None:
        """`tell` gets the step and, on rank 0, the figures."""
        self._config, self._task, self._strategy = config, task, strategy
        self._log, self._stop, self._tell = log, stop, tell
        self.owed = False

    def owed_after(self, step: int) -> bool:
        """Whether a run that goes on after `step` owes the evaluation that was due there; rank 0 looks."""
        every = self._config.evaluate.every
        is_due = every is not None and step > 0 and step % every == 0
        self.owed = is_due and not self._strategy.all_gather_object(self._log.has(EVALUATIONS, step))[0]
        return self.owed

    def make(self, step: int) -> bool:
        """Evaluates after `step`; False where somebody has asked to stop meanwhile."""
        from mres.evaluate.evaluator import EvaluationStoppedError, Evaluator

        config, strategy = self._config, self._strategy
        assert config.data.val is not None, "refused before the start"
        shards = open_set(config.data.val, config.data)
        evaluator = Evaluator(config, shards, self._task, strategy, lambda: self._stop.requested)
        averaged = config.evaluate.weights == "ema"
        self.owed = True
        try:
            with strategy.averaged() if averaged else nullcontext():
                table = evaluator.figures(strategy.module, max_images=config.evaluate.max_images)
        except EvaluationStoppedError:
            return False
        self.owed = False
        self._tell(step, table)
        return True
