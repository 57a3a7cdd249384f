"""Measures that take turns, so that a noisy machine hits all of them alike."""

import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any


def medians(measures: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Median of what each measures; they take turns, and one round before the first is not counted."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(rounds + 1):
        for name, measure in measures.items():
            value = measure()
            if number:
                found[name].append(value)
    return {name: statistics.median(values) for name, values in found.items()}


def alternate(actions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each action, taking turns."""
    return medians({name: partial(seconds, action) for name, action in actions.items()}, rounds)


def seconds(action: Callable[[], object]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def batch_rate(batches: Iterable[Any], skip: int) -> float:
    """Batches a second, from the moment when `skip` have come; neither start nor end of worker processes is counted."""
    started = last = 0.0
    count = -skip
    for count, _ in enumerate(batches, start=1 - skip):
        last = time.perf_counter()
        if count == 0:
            started = last
    assert count > 0, "more batches than are skipped"
    return count / (last - started)
