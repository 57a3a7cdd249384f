"""launch/train.py with one rank that hangs for ever: `hanging_train.py WHERE RANK BATCH [arguments of launch/train.py]`.

WHERE is forward or backward, BATCH counts this rank's micro-batches from 1.
"""

import itertools
import os
import sys
import time

from torch import Tensor, nn

from mres.errors import exit_on_user_error
from mres.model.task import SegmentationTask
from mres.stream.batch import Batch
from mres.train.run import main


def hang(*_: object) -> None:
    while True:
        time.sleep(60)


def hang_in(where: str, batch_number: int) -> None:
    losses, batches = SegmentationTask.losses, itertools.count(1)

    def hanging(self: SegmentationTask, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        comes = next(batches) == batch_number
        if comes and where == "forward":
            hang()
        sums = losses(self, module, batch)
        if comes:
            sums["loss"].register_hook(hang)
        return sums

    SegmentationTask.losses = hanging  # type: ignore[method-assign]


if __name__ == "__main__":
    where, rank, batch_number, *arguments = sys.argv[1:]
    if os.environ["RANK"] == rank:
        hang_in(where, int(batch_number))
    sys.exit(exit_on_user_error(lambda: main(arguments))())
