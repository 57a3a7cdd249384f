"""batches.jsonl: the ids of every global batch, in order (`train.trace_batches`)."""

from collections.abc import Callable

from mres.parallel.strategy import Strategy
from mres.run_folder import BATCHES, RunLog
from mres.stream.batch import Batch
from mres.train.callback import Callback


class BatchTrace(Callback):
    """Gathers the ids of all ranks after every step; `epoch_of` tells the epoch (from 0) of a step (from 1)."""

    def __init__(self, strategy: Strategy, log: RunLog, epoch_of: Callable[[int], int]) -> None:
        self._strategy, self._log, self._epoch_of = strategy, log, epoch_of

    def after_step(self, step: int, batch: Batch) -> None:
        ranks = self._strategy.gather_object((batch.image_ids, batch.expression_ids)) or []
        self._log.append(
            BATCHES,
            {
                "step": step,
                "epoch": self._epoch_of(step),
                "image_ids": [i for images, _ in ranks for i in images],
                "expression_ids": [e for _, expressions in ranks for e in expressions],
            },
        )
