"""Threads that never keep a process from ending, unlike those of `concurrent.futures`."""

import queue
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import Any

_Work = tuple[Future, Callable[..., Any], tuple[Any, ...]]


def in_daemon(function: Callable[..., Any], *args: Any) -> Future:
    """`function(*args)`, begun in a thread of its own."""
    future: Future = Future()
    Thread(target=_finish, args=((future, function, args),), daemon=True).start()
    return future


class DaemonPool:
    """A few threads that do what is submitted, first come, first served; they start with the first of it."""

    def __init__(self, threads: int) -> None:
        self._count = threads
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._threads: list[Thread] = []

    def submit(self, function: Callable[..., Any], *args: Any) -> Future:
        future: Future = Future()
        self._work.put((future, function, args))
        if len(self._threads) < self._count:
            thread = Thread(target=_work_off, args=(self._work,), daemon=True)
            self._threads.append(thread)
            thread.start()
        return future

    def close(self) -> None:
        """Cancels what has not begun; what has is left to end by itself."""
        while True:
            try:
                work = self._work.get_nowait()
            except queue.Empty:
                break
            if work is not None:
                work[0].cancel()
        for _ in self._threads:
            self._work.put(None)


def _work_off(queued: "queue.SimpleQueue[_Work | None]") -> None:
    while (work := queued.get()) is not None:
        _finish(work)
        del work  # what it refers to must not live until the next one comes


def _finish(work: _Work) -> None:
    future, function, args = work
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function(*args))
    except BaseException as error:
        future.set_exception(error)
