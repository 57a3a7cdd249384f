"""Progress of long work over records: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
_LINE_EVERY_S = 10.0


def track(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """`items` unchanged, their progress shown on stderr."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track as rich_track

        yield from rich_track(items, label, total=total, console=Console(stderr=True))
        return
    said = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - said >= _LINE_EVERY_S:
            said = time.monotonic()
            print(f"{label}: {done} of {total}", file=sys.stderr, flush=True)
