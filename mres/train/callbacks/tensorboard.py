"""The metrics in tensorboard/ of the run's folder; on rank 0."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mres.train.callback import Callback

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard(Callback):
    """A file of events for each start; what an earlier one has of later steps is not shown any more."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / "tensorboard"
        self._writer: SummaryWriter | None = None

    def run_start(self, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        self._writer = SummaryWriter(str(self._folder), purge_step=first_step + 1)

    def on_log(self, metrics: dict[str, float | int]) -> None:
        assert self._writer is not None, "run_start() comes first"
        for name, value in metrics.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(metrics["step"]))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
