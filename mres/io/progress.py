"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
_LINE_EVERY_S = 10.0
_MB = 10**6


def track(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """`items` unchanged, their progress shown on stderr."""
    with shown(total, label) as show:
        for done, item in enumerate(items, start=1):
            yield item
            show(done)


def track_count(items: Iterable[T], count: Callable[[], int], total: int, label: str) -> Iterator[T]:
    """`items` unchanged; what is shown is `count()` of `total`, looked at whenever an item comes."""
    with shown(total, label) as show:
        for item in items:
            show(count())
            yield item


@contextmanager
def count_bytes(total: int, label: str) -> Iterator[Callable[[int], None]]:
    """A function that is told how many bytes more are done, of `total`."""
    done = 0
    with shown(total // _MB, f"{label}, MB") as show:

        def add(num_bytes: int) -> None:
            nonlocal done
            done += num_bytes
            show(done // _MB)

        yield add


@contextmanager
def shown(total: int, label: str) -> Iterator[Callable[[int], None]]:
    """A function that shows how many are done."""
    if not sys.stderr.isatty():
        yield _lines(total, label)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=total)
        yield lambda done: progress.update(task, completed=done)


def _lines(total: int, label: str) -> Callable[[int], None]:
    said = time.monotonic()

    def show(done: int) -> None:
        nonlocal said
        if time.monotonic() - said >= _LINE_EVERY_S:
            said = time.monotonic()
            print(f"{label}: {done} of {total}", file=sys.stderr, flush=True)

    return show
