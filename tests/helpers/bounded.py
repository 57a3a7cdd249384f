"""Calls in forked processes of little memory and time: what an enemy's file does to a reader, it does there."""

import os
import pickle
import resource
import select
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mres.errors import UserError
from mres.records import RecordError

MEGABYTES, SECONDS = 500, 30.0  # time: of a machine that does other things, too


@dataclass(frozen=True)
class Outcome:
    """What a call came to: "made" (with its value as a text), "refused" (with the message), else what must not be."""

    kind: str
    text: str


def outcome(function: Callable[[], Any]) -> Outcome:
    """Of a call in this process."""
    try:
        return Outcome("made", repr(function())[:1000])
    except (UserError, RecordError) as error:
        return Outcome("refused", str(error))
    except BaseException as error:
        return Outcome("traceback", "".join(traceback.format_exception(error))[-2000:])


def bounded(function: Callable[[], Any], *, megabytes: int = MEGABYTES, seconds: float = SECONDS) -> Outcome:
    """Of a call in a fork that gets so much more memory than this process has, and so many seconds."""
    (found,) = bounded_each([function], megabytes=megabytes, seconds=seconds)
    return found


def bounded_each(
    functions: list[Callable[[], Any]], *, megabytes: int = MEGABYTES, seconds: float = SECONDS
) -> list[Outcome]:
    """As `bounded`, one after another in one fork; where that dies or hangs, the next ones get another."""
    found: list[Outcome] = []
    while len(found) < len(functions):
        found += _in_fork(functions[len(found) :], megabytes, seconds)
    return found


def _in_fork(functions: list[Callable[[], Any]], megabytes: int, seconds: float) -> list[Outcome]:
    """What came of those that it got through, and of the one that it died of."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _limit_memory(megabytes)
        with os.fdopen(writing, "wb", buffering=0) as file:
            for function in functions:
                content = pickle.dumps(outcome(function))
                file.write(len(content).to_bytes(4, "little") + content)
        os._exit(0)
    os.close(writing)
    found: list[Outcome] = []
    with os.fdopen(reading, "rb", buffering=0) as file:
        while len(found) < len(functions) and (size := _bytes(file, 4, seconds)):
            found.append(pickle.loads(_bytes(file, int.from_bytes(size, "little"), seconds)))
    with_signal = signal.SIGKILL if len(found) < len(functions) else 0
    ended, status = os.waitpid(pid, os.WNOHANG if with_signal else 0)
    if not ended:
        os.kill(pid, with_signal)
        os.waitpid(pid, 0)
        found.append(Outcome("hang", f"more than {seconds} s"))
    elif len(found) < len(functions):
        found.append(Outcome("crash", f"ended with {os.waitstatus_to_exitcode(status)}"))
    return found


def _limit_memory(megabytes: int) -> None:
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (megabytes << 20),) * 2)


def _bytes(file: Any, size: int, seconds: float) -> bytes:
    """So many bytes; none where the other end is gone or silent."""
    content = b""
    while len(content) < size:
        ready, _, _ = select.select([file], [], [], seconds)
        more = file.read(size - len(content)) if ready else b""
        if not more:
            return b""
        content += more
    return content
