"""What a run says and keeps: lines of text for people, JSON lines in its folder; rank 0 alone does either."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mres.io.json_files import read_jsonl

METRICS, EVALUATIONS, BATCHES = "metrics.jsonl", "evaluations.jsonl", "batches.jsonl"
BAD_STEPS, ROLLBACKS, QUARANTINE = "bad_steps.jsonl", "rollbacks.jsonl", "quarantine.jsonl"


class RunLog:
    """Rank 0's voice; on other ranks every method does nothing."""

    def __init__(self, run_dir: Path, *, enabled: bool) -> None:
        self._dir, self.enabled = run_dir, enabled

    def say(self, text: str) -> None:
        if self.enabled:
            print(text, flush=True)

    def append(self, name: str, line: Mapping[str, Any]) -> None:
        """One JSON line, which has a `step`, into a file of the run's folder."""
        if self.enabled:
            with (self._dir / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(_json_value(line), allow_nan=False) + "\n")

    def rewind(self, step: int) -> None:
        """For a run that goes on after `step` steps: what was written of later ones, by a dead run mostly, is taken back."""
        if self.enabled:
            for name in (METRICS, EVALUATIONS, BATCHES, BAD_STEPS, ROLLBACKS, QUARANTINE):
                rewind(self._dir / name, step)


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


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file of the run, none where there is no file."""
    return [value for _, value in read_jsonl(path)] if path.exists() else []


def _json_value(value: Any) -> Any:
    """JSON knows no NaN and no infinity: null stands for them; readers other than Python's would refuse the line."""
    if isinstance(value, Mapping):
        return {key: _json_value(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
