"""How long before its end a job is warned: as asked for, by what saving takes in the run, and as its time limit allows."""

import json
from pathlib import Path

import pytest

from mres.cluster.limits import SIGNAL_DELAY_S, signal_delay
from mres.errors import UserError


def metrics(run_dir: Path, *write_s: float, step_s: float = 1.0) -> None:
    lines = [{"step": n, "step_s": step_s, "checkpoint_write_s": s} for n, s in enumerate(write_s, start=1)]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_by_what_saving_takes(tmp_path: Path) -> None:
    def delay() -> int:
        return signal_delay(None, None, is_requeued=True, run_dir=tmp_path)

    assert delay() == SIGNAL_DELAY_S
    metrics(tmp_path, 0.0, 0.0)  # no checkpoint yet
    assert delay() == SIGNAL_DELAY_S
    metrics(tmp_path, 0.0, 0.5, 0.0)
    assert delay() == 70
    metrics(tmp_path, 0.0, 400.0, 0.0, 390.0, step_s=30.0)
    assert delay() == 60 + 2 * 430
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "checkpoint_write_s": nul')
    assert delay() == SIGNAL_DELAY_S


def test_what_is_given_wins(tmp_path: Path) -> None:
    metrics(tmp_path, 400.0)
    assert signal_delay(30, 60, is_requeued=True, run_dir=tmp_path) == 30


def test_a_short_job_that_is_not_requeued_is_warned_in_time(tmp_path: Path) -> None:
    assert signal_delay(None, 2, is_requeued=False, run_dir=tmp_path) == 30
    assert signal_delay(100, 2, is_requeued=False, run_dir=tmp_path) == 100
    assert signal_delay(None, 60, is_requeued=False, run_dir=tmp_path) == SIGNAL_DELAY_S


@pytest.mark.parametrize(
    ("given", "limit_min", "is_requeued", "words"),
    [
        (None, 4, True, "--time 5 or more, a shorter --signal-delay, or --max-requeues 0"),
        (60, 2, True, "--time 3 or more"),
        (120, 2, False, "--signal-delay 120 is not below the time limit of 120 seconds"),
        (70_000, None, True, "at most 65535"),
    ],
)
def test_refused(tmp_path: Path, given: int | None, limit_min: int | None, is_requeued: bool, words: str) -> None:
    with pytest.raises(UserError, match=words):
        signal_delay(given, limit_min, is_requeued=is_requeued, run_dir=tmp_path)
