"""Stopping in an orderly way: a signal sets a flag, ranks agree on it at a step's boundary, all save together.

Never a collective in a signal handler: the handler only notes the signal.
"""

import signal
import sys
import time
from types import FrameType

# EX_TEMPFAIL: the run was asked to stop before its end and can go on where it is; the launcher may requeue it.
PREEMPTED_EXIT = 75
INTERRUPTED_EXIT = 130

# Launchers forward a Ctrl-C that the terminal has sent to every process already: only a later one is a second one.
_SECOND_CTRL_C_AFTER_S = 2.0


class StopRequest:
    """Whether this process was asked to stop: Ctrl-C, SIGTERM, SIGQUIT, a closed terminal (SIGHUP), SLURM's warning (SIGUSR2)."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._since = 0.0

    def install(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR2):
            signal.signal(number, self._note)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup, which is asked for
            signal.signal(signal.SIGHUP, self._note)

    @property
    def requested(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        return INTERRUPTED_EXIT if self.signal == signal.SIGINT else PREEMPTED_EXIT

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > _SECOND_CTRL_C_AFTER_S:
            print("stopped at once; the last checkpoint stands", file=sys.stderr, flush=True)
            raise KeyboardInterrupt
