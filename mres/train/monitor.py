"""What a run shows and keeps: metrics.jsonl, TensorBoard, a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from torch.utils.tensorboard import SummaryWriter

# Their lines have a `step`; those of steps that are not done (any more) go.
_FILES = (
    "metrics.jsonl",
    "batches.jsonl",
    "evaluations.jsonl",
    "bad_steps.jsonl",
    "rollbacks.jsonl",
    "quarantine.jsonl",
)


class Monitor:
    """Rank 0's voice; on other ranks every method does nothing."""

    def __init__(self, run_dir: Path, total_steps: int, *, enabled: bool) -> None:
        self._dir, self._total, self._enabled = run_dir, total_steps, enabled
        self._board: SummaryWriter | None = None
        self._progress: Progress | None = None
        self._bar: TaskID | None = None

    @property
    def enabled(self) -> bool:
        return self._enabled

    def start(self, first_step: int) -> None:
        """Opens the files for a run that goes on at `first_step`: what a dead run wrote after it is taken back."""
        if not self._enabled:
            return
        for name in _FILES:
            rewind(self._dir / name, first_step)
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(self._dir / "tensorboard"), purge_step=first_step + 1)
        if sys.stdout.isatty():
            self._progress = _progress_bar()
            self._bar = self._progress.add_task("training", total=self._total, completed=first_step, figures="")
            self._progress.start()

    def restart(self, first_step: int) -> None:
        """Goes back: what was written after `first_step` is taken back."""
        self.close()
        self.start(first_step)

    def metrics(self, values: Mapping[str, float | int]) -> None:
        """One line of metrics; `values` has `step`, the number of steps done."""
        if not self._enabled:
            return
        self.append("metrics.jsonl", values)
        step = int(values["step"])
        assert self._board is not None, "start() comes first"
        for name, value in values.items():
            if name != "step":
                self._board.add_scalar(name, value, step)
        figures = _figures(values)
        if self._progress is not None and self._bar is not None:
            self._progress.update(self._bar, completed=step, figures=figures)
        else:
            print(f"step {step}/{self._total}  {figures}", flush=True)

    def append(self, name: str, line: Mapping[str, Any]) -> None:
        """One JSON line into a file of the run's folder."""
        if self._enabled:
            with (self._dir / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(_json_value(line), allow_nan=False) + "\n")

    def say(self, text: str) -> None:
        if not self._enabled:
            return
        if self._progress is not None:
            self._progress.console.print(text, markup=False, highlight=False)
        else:
            print(text, flush=True)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        if self._board is not None:
            self._board.close()


def rewind(path: Path, step: int) -> None:
    """Drops the lines of a JSONL file that belong to steps after `step`, and a last line that was cut off."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _json_value(value: Any) -> Any:
    """JSON knows no NaN and no infinity: null stands for them; readers other than Python's would refuse the line."""
    if isinstance(value, Mapping):
        return {key: _json_value(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _figures(values: Mapping[str, float | int]) -> str:
    wait = 100 * values["data_wait_s"] / max(1e-9, values["step_s"])
    return (
        f"loss {values['loss']:.4f}  lr {values['lr']:.2e}  norm {values['grad_norm']:.2f}  "
        f"{values['images_per_s']:.1f} images/s  {values['expressions_per_s']:.0f} expressions/s  "
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
