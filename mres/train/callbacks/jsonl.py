"""metrics.jsonl and evaluations.jsonl."""

from collections.abc import Mapping
from typing import Any

from mres.run_folder import EVALUATIONS, METRICS, RunLog
from mres.train.callback import Callback


class Jsonl(Callback):
    """A JSON line for each line of metrics and each evaluation, in full precision."""

    def __init__(self, log: RunLog) -> None:
        self._log = log

    def on_log(self, metrics: dict[str, float | int]) -> None:
        self._log.append(METRICS, metrics)

    def evaluated(self, step: int, table: Mapping[str, Any]) -> None:
        self._log.append(EVALUATIONS, {"step": step, **table})
