"""What is a spike: against the medians of a window, in which skipped steps leave gaps."""

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mres.train.spikes import BOTH, LOSS, NONE, NORM, SpikeDetector

CPU = torch.device("cpu")
FACTOR, WINDOW = 3.0, 6

values = st.one_of(st.floats(1e-3, 1e3), st.just(math.nan), st.just(math.inf))


def judge(detector: SpikeDetector, step: int, norm: float, loss: float) -> int:
    return int(detector.judge(step, torch.tensor(norm), torch.tensor(loss)))


def by_hand(steps: list[tuple[float, float]]) -> list[int]:
    """The same in plain Python: the last WINDOW steps, of which those that were kept count."""
    recent: list[tuple[float, float] | None] = []
    verdicts = []
    for norm, loss in steps:
        norm, loss = float(torch.tensor(norm)), float(torch.tensor(loss))  # as float32 has them
        kept = [pair for pair in recent[-WINDOW:] if pair is not None]
        verdict = NONE
        if 2 * len(kept) >= WINDOW:
            verdict += NORM * (norm > FACTOR * statistics.median_low(pair[0] for pair in kept))
            verdict += LOSS * (loss > FACTOR * statistics.median_low(pair[1] for pair in kept))
        finite = math.isfinite(norm) and math.isfinite(loss)
        recent.append((norm, loss) if finite and verdict == NONE else None)
        verdicts.append(verdict)
    return verdicts


@given(st.lists(st.tuples(values, values), max_size=30))
def test_it_is_what_plain_python_says(steps: list[tuple[float, float]]) -> None:
    detector = SpikeDetector(FACTOR, WINDOW, CPU)
    assert [judge(detector, step, *pair) for step, pair in enumerate(steps)] == by_hand(steps)


@given(st.lists(st.tuples(values, values), max_size=20), st.integers(0, 20))
def test_a_window_goes_on_after_a_checkpoint(steps: list[tuple[float, float]], cut: int) -> None:
    whole, first, second = (SpikeDetector(FACTOR, WINDOW, CPU) for _ in range(3))
    verdicts = [judge(whole, step, *pair) for step, pair in enumerate(steps)]
    for step, pair in enumerate(steps[:cut]):
        judge(first, step, *pair)
    second.load(first.to_json())
    assert [judge(second, step + cut, *pair) for step, pair in enumerate(steps[cut:])] == verdicts[cut:]


@pytest.mark.parametrize(
    ("norm", "loss", "verdict"),
    [(1.0, 0.5, NONE), (3.01, 0.5, NORM), (1.0, 1.51, LOSS), (9.0, 9.0, BOTH), (3.0, 1.5, NONE), (math.nan, 0.5, NONE)],
)
def test_norm_and_loss_are_measured_apart(norm: float, loss: float, verdict: int) -> None:
    detector = SpikeDetector(FACTOR, WINDOW, CPU)
    assert [judge(detector, step, 1.0, 0.5) for step in range(WINDOW)] == [NONE] * WINDOW
    assert judge(detector, WINDOW, norm, loss) == verdict


def test_another_level_for_good_is_taken_once_the_old_one_is_forgotten() -> None:
    detector = SpikeDetector(FACTOR, WINDOW, CPU)
    verdicts = [judge(detector, step, 1.0 if step < WINDOW else 100.0, 0.5) for step in range(4 * WINDOW)]
    assert verdicts[:WINDOW] == [NONE] * WINDOW
    first = verdicts.index(NONE, WINDOW)
    assert WINDOW + WINDOW // 2 <= first <= 2 * WINDOW
    assert verdicts[first:] == [NONE] * (4 * WINDOW - first)


def test_a_window_of_another_size_is_not_taken() -> None:
    detector = SpikeDetector(FACTOR, WINDOW, CPU)
    detector.load([[1.0] * 9, [1.0] * 9])
    assert detector.to_json() == [[None] * WINDOW] * 2
