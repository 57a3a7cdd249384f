"""Work over all of a set in several processes: its progress shown, its results in their order."""

from collections.abc import Callable, Iterator
from typing import TypeVar

from mres.errors import UserError
from mres.io.processes import Ticks, spread
from mres.io.progress import track_count
from mres.records import RecordError
from mres.shards.reader import ShardSet

T = TypeVar("T")
_CHUNK = 500  # records that a process takes at a time


def scan(make: Callable[[int, Callable[[], None]], T], count: int, *, workers: int, total: int, label: str) -> list[T]:
    """[make(0, tick), …, make(count - 1, tick)], made by `workers` forked processes (0: by this one).

    Args:
        make: makes a piece of the work, and calls `tick` for each of the `total` records in it.

    Raises:
        UserError: a process died. What `make` raises comes through.
    """
    ticks, made = Ticks(), dict[int, T]()
    work = spread(lambda number: make(number, ticks.tick), list(range(count)), workers)
    for item in track_count(work, lambda: ticks.count, total, label):
        if item is not None:
            made[item[0]] = item[1]
    return [made[number] for number in range(count)]


def scan_records(shards: ShardSet, make: Callable[[Iterator[int]], T], *, workers: int, label: str) -> list[T]:
    """What `make` makes of each run of record positions, one run behind the other.

    Raises:
        UserError: a record cannot be read, or a process died.
    """
    starts = range(0, len(shards), _CHUNK)

    def chunk(number: int, tick: Callable[[], None]) -> T:
        def positions() -> Iterator[int]:
            for position in range(starts[number], min(len(shards), starts[number] + _CHUNK)):
                yield position
                tick()

        return make(positions())

    try:
        return scan(chunk, len(starts), workers=workers, total=len(shards), label=label)
    except RecordError as error:
        raise UserError(f"{error}; `python tools/shard.py verify {shards.location}` names all damage") from None
