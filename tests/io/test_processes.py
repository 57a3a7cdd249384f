"""Work in forked processes: every number once, errors and deaths reach the one who asked, nothing is left running."""

import math
import multiprocessing
import os
import signal
import subprocess
import time
from multiprocessing.connection import Connection

import pytest

from mres.errors import UserError
from mres.io.processes import Ticks, heed_parent_only, spread


@pytest.mark.parametrize("workers", [0, 1, 3, 50])
@pytest.mark.parametrize("count", [0, 1, 20])
def test_every_number_comes_once(workers: int, count: int) -> None:
    ticks = Ticks()

    def make(number: int) -> int:
        ticks.tick()
        return number * number

    made = [item for item in spread(make, list(range(count)), workers) if item is not None]
    assert sorted(made) == [(n, n * n) for n in range(count)]
    assert ticks.count == count


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_reaches_the_consumer(workers: int) -> None:
    with pytest.raises(ValueError, match=r"math domain error|expected a positive"):
        list(spread(lambda number: math.log(number), [3, 2, 1, 0], workers))


def test_a_killed_process_is_named_and_the_others_are_ended() -> None:
    pids = []

    def make(number: int) -> int:
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)
        return os.getpid()

    def consume() -> None:
        pids.extend(item[1] for item in spread(make, [0, 2, 3, 1, *range(4, 500)], 2) if item is not None)

    with pytest.raises(UserError, match=r"a worker process died \(exit code -9"):
        consume()
    assert pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_of_all_who_ask_a_helper_to_stop_only_its_parent_is_heard() -> None:
    def work(ready: Connection) -> None:
        heed_parent_only()
        ready.send(None)
        time.sleep(60)

    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    helper = context.Process(target=work, args=(theirs,))
    helper.start()
    ours.recv()
    for name in ("INT", "HUP", "QUIT", "USR2", "TERM"):
        subprocess.run(["kill", f"-{name}", str(helper.pid)], check=True)
    helper.join(0.5)
    assert helper.exitcode is None
    helper.terminate()
    helper.join(60)
    assert helper.exitcode == 0
