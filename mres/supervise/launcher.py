"""The launchers above a rank: one that is killed (kill -9) leaves its ranks behind, and nobody could stop them any more.

They would train on, unseen, and hold the run's folder. So every rank looks for its launchers once a second, and asks
itself to stop when one is gone. What plain python was started from, a shell mostly, may go: nothing is watched then.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import psutil  # type: ignore[import-untyped]

_PROGRAMS = {
    "torchrun", "torch.distributed.run", "torch.distributed.launch",
    "deepspeed", "deepspeed.launcher.runner", "deepspeed.launcher.launch",
    "submit.py", "submitit.local._local",
}  # fmt: skip
_LOOK_EVERY_S = 1.0
# Again, since a signal may come before whoever is to note it; a stop that is noted already is not disturbed by it.
_ASK_EVERY_S = 10.0

_lost = threading.Event()


def stop_without_launcher() -> None:
    """From here on this process gets SIGTERM, as from its launcher, once a launcher above it is gone."""
    launchers = [process for process in _ancestors() if _program(process) in _PROGRAMS]
    if launchers:
        threading.Thread(target=_watch, args=(launchers,), name="mres-launcher", daemon=True).start()


def is_lost() -> bool:
    """Whether a launcher above this process is gone."""
    return _lost.is_set()


def _ancestors() -> list[psutil.Process]:
    try:
        found: list[psutil.Process] = psutil.Process().parents()
    except psutil.Error:
        return []
    return found


def _program(process: psutil.Process) -> str:
    """The module or script that an interpreter runs, by its name."""
    try:
        words = process.cmdline()[1:]
    except psutil.Error:
        return ""
    for number, word in enumerate(words):
        if word == "-m":
            return next(iter(words[number + 1 :]), "")
        if not word.startswith("-"):
            return os.path.basename(word)
    return ""


def _watch(launchers: list[psutil.Process]) -> None:
    names = {process.pid: _program(process) for process in launchers}
    while not (gone := [process.pid for process in launchers if not _lives(process)]):
        time.sleep(_LOOK_EVERY_S)
    _lost.set()
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(
            f"warning: the launcher ({names[gone[0]]}, pid {gone[0]}) is gone; its ranks save what they have and end",
            file=sys.stderr,
            flush=True,
        )
    while True:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_ASK_EVERY_S)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
