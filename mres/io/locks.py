"""Locks between the processes and threads of a machine that the kernel frees when their holder dies."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_held: set[int] = set()


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[int]:
    """Holds the lock on the file `path`, which is made where it is missing; its descriptor, to read and write it.

    Every call opens the file for itself: threads exclude each other too, and so do a process and its fork.

    Raises:
        BlockingIOError: somebody holds it, and this one does not `wait`.
        OSError: the file cannot be made, or its file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    _held.add(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            yield descriptor
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _let_go() -> None:
    """A child's copies of descriptors would keep the locks of threads that it does not have."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)
