"""Items made by several processes, handed over in their order."""

import signal
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from typing import TypeVar

T = TypeVar("T")
_AHEAD = 32  # items a worker may be ahead of the consumer; bounds the memory


def in_order(make: Callable[[int], T], count: int, workers: int) -> Iterator[T]:
    """make(0) … make(count - 1), in this order whatever the number of workers.

    Args:
        make: picklable, a pure function of its index.
        count: how many items.
        workers: processes, at least 1; they are spawned, so that threads of this process do no harm.
    """
    # Ctrl-C reaches the whole process group: only the parent answers it, by ending the pool.
    ignore = (signal.SIGINT, signal.SIG_IGN)
    with get_context("spawn").Pool(workers, initializer=signal.signal, initargs=ignore) as pool:
        pending = deque(pool.apply_async(make, (index,)) for index in range(min(count, workers * _AHEAD)))
        for index in range(len(pending), count + len(pending)):
            if not pending:
                return
            item = pending.popleft().get()
            if index < count:
                pending.append(pool.apply_async(make, (index,)))
            yield item
