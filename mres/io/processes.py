"""Work spread over forked processes: every number once, a dead process named, whatever ends this one ends them all."""

import atexit
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NoReturn, TypeVar

from mres.errors import UserError

T = TypeVar("T")
_LOOK_EVERY_S = 0.2


class Ticks:
    """Counts what all processes have done; anonymous shared memory, nothing to clean up."""

    def __init__(self) -> None:
        self._value = multiprocessing.get_context("fork").Value("q", 0)

    def tick(self) -> None:
        with self._value.get_lock():
            self._value.value += 1

    @property
    def count(self) -> int:
        return self._value.value


def spread(make: Callable[[int], T], numbers: list[int], workers: int) -> Generator[tuple[int, T] | None, None, None]:
    """(number, make(number)) of all `numbers`, as they get ready; None now and then while nothing is.

    The Nones let the consumer show progress. `make` runs in `workers` forked processes (0: in this one), so it may be
    any function; its results and exceptions must be picklable. An exception ends the work and is raised here.

    Raises:
        UserError: a process died, as when memory runs out.
    """
    if workers == 0:
        for number in numbers:
            yield number, make(number)
        return
    context = multiprocessing.get_context("fork")
    queue, running = iter(numbers), dict[Connection, tuple[BaseProcess, int]]()
    processes: list[BaseProcess] = []
    try:
        for number in [n for _, n in zip(range(workers), queue, strict=False)]:
            ours, theirs = context.Pipe()
            process: BaseProcess = context.Process(target=_work, args=(make, theirs), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            ours.send(number)
            running[ours] = process, number
        while running:
            yield None
            for connection in wait(list(running), timeout=_LOOK_EVERY_S):
                assert isinstance(connection, Connection)
                process, number = running.pop(connection)
                yield number, _received(connection, process)
                following = next(queue, None)
                connection.send(following)
                if following is not None:
                    running[connection] = process, following
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _work(make: Callable[[int], T], connection: Connection) -> None:
    # Ctrl-C reaches the whole process group: only the parent answers it, by ending the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        while (number := connection.recv()) is not None:
            connection.send(_outcome(make, number))
    except (EOFError, BrokenPipeError):  # the parent is gone
        return


def heed_parent_only() -> None:
    """For a forked helper of a process that saves before it ends: of those who ask to stop, it alone may end this one.

    Launchers and terminals send a signal to whole groups or trees of processes, and a helper that goes first would end
    the work in the middle of the save.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_by_parent, daemon=True).start()


def _end_by_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _end_with_parent() -> None:
    """Ends this process at once where its parent was killed: whoever does its work again must be alone at it.

    Processes that were forked later hold the other ends of earlier ones' pipes, so the last one goes first.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _outcome(make: Callable[[int], T], number: int) -> T | BaseException:
    try:
        return make(number)
    except BaseException as error:
        return error


def _received(connection: Connection, process: BaseProcess) -> T:  # type: ignore[type-var]
    try:
        outcome = connection.recv()
    except EOFError:
        process.join()
        raise UserError(
            f"a worker process died (exit code {process.exitcode}; -9 often means that memory ran out); "
            "run the same command again, with fewer --workers"
        ) from None
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def end_process(code: int) -> NoReturn:
    """`sys.exit(code)`, but once torch is loaded without the end of Python, which its threads may not survive.

    One of gloo's that still lets go of the last collective's tensors, as happens on a busy machine, would end a run that
    was complete with "terminate called without an active exception".
    """
    if "torch" not in sys.modules:
        sys.exit(code)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads it any more
            stream.flush()
    os._exit(code)
