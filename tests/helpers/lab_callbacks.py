"""Callbacks of training runs in a lab (`train.callbacks`): a tiny run slow enough to be met by a fault, and ranks that fail."""

import os
import signal
import time

from mres.stream.batch import Batch
from mres.train.callback import Callback


class Paced(Callback):
    """Every step takes at least LAB_PACE_S seconds (a quarter of one); no figure of the run changes."""

    def after_step(self, step: int, batch: Batch) -> None:
        time.sleep(float(os.environ.get("LAB_PACE_S", "0.25")))


class KilledAtStep(Callback):
    """Rank LAB_KILLED_RANK (1) is killed in step LAB_KILLED_STEP, every time that it gets there."""

    def after_step(self, step: int, batch: Batch) -> None:
        if (step, self.world.rank) == (int(os.environ["LAB_KILLED_STEP"]), int(os.environ.get("LAB_KILLED_RANK", "1"))):
            os.kill(os.getpid(), signal.SIGKILL)


class KilledAfterStart(Callback):
    """Rank 1 is killed LAB_KILLED_AFTER steps after every start."""

    _first = 0

    def run_start(self, first_step: int) -> None:
        self._first = first_step

    def after_step(self, step: int, batch: Batch) -> None:
        if self.world.rank == 1 and step - self._first == int(os.environ["LAB_KILLED_AFTER"]):
            os.kill(os.getpid(), signal.SIGKILL)
