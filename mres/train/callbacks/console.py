"""What a run shows on rank 0: a progress bar with figures on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mres.train.callback import Callback

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Console(Callback):
    """While there is a bar, rich lets what others print appear above it."""

    def __init__(self, total_steps: int) -> None:
        self._total = total_steps
        self._progress: Progress | None = None
        self._bar: TaskID | None = None

    def run_start(self, first_step: int) -> None:
        if not sys.stdout.isatty():
            return
        self.close()
        self._progress = _progress_bar()
        self._bar = self._progress.add_task("training", total=self._total, completed=first_step, figures="")
        self._progress.start()

    def on_log(self, metrics: dict[str, float | int]) -> None:
        step, figures = int(metrics["step"]), _figures(metrics)
        if self._progress is not None and self._bar is not None:
            self._progress.update(self._bar, completed=step, figures=figures)
        else:
            print(f"step {step}/{self._total}  {figures}", flush=True)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


def _figures(metrics: Mapping[str, float | int]) -> str:
    wait = 100 * metrics["data_wait_s"] / max(1e-9, metrics["step_s"])
    return (
        f"loss {metrics['loss']:.4f}  lr {metrics['lr']:.2e}  norm {metrics['grad_norm']:.2f}  "
        f"{metrics['images_per_s']:.1f} images/s  {metrics['expressions_per_s']:.0f} expressions/s  "
        f"data wait {wait:.0f} %"
    )


def _progress_bar() -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    return Progress(*columns)
