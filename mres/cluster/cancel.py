"""Cancelling a run so that nothing is lost: its ranks save first, and its job is not queued again."""

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mres.cluster import jobs, slurm
from mres.cluster.status import Status, look, newest
from mres.errors import UserError
from mres.run_folder import LOCK_NAME

_POLL_S = 1.0
_AGAIN_S = 15.0  # a signal that comes before the tasks are started reaches nobody


def cancel(run_dirs: Sequence[Path]) -> None:
    """Cancels what is queued, has what runs save and end, waits for that, and says what is saved.

    Raises:
        UserError: none of them is in the queue, or SLURM cannot be asked or refuses.
    """
    if shutil.which("scancel") is None:
        raise UserError("there is no scancel on PATH: cancel from a login node of the cluster")
    found = look(run_dirs)
    live = [status for status in found if status.is_live and status.job]
    if not live:
        raise UserError(_nothing_to_cancel(found))
    try:
        # What waits goes first: it would take the places that become free.
        for status in sorted(live, key=lambda status: status.state != "pending"):
            _begin(status)
        _wait([status.run_dir for status in live])
    except slurm.SlurmError as error:
        raise UserError(f"SLURM does not cancel: {error}") from None


def _begin(status: Status) -> None:
    jobs.note(status.run_dir, _event(status, "cancelling"))
    if status.state == "pending":
        slurm.cancel(status.job)
        jobs.note(status.run_dir, _event(status, "cancelled", reason="cancelled while it was queued"))
        print(f"{status.run_dir}: job {status.job} is taken out of the queue{_saved(status.run_dir)}")
    else:
        _signal(status)
        print(f"{status.run_dir}: job {status.job} is asked to save and end", file=sys.stderr, flush=True)


def _signal(status: Status) -> None:
    try:
        slurm.signal(status.job, "USR2")
    except slurm.SlurmError:
        if look([status.run_dir])[0].is_live:  # else it has ended just now
            raise


def _event(status: Status, event: jobs.EventName, reason: str = "") -> jobs.Event:
    step = jobs.newest_step(status.run_dir)
    return jobs.Event(status.job, event, restart=newest(status.events).restart, step=step, reason=reason)


def _wait(run_dirs: Sequence[Path]) -> None:
    waiting, asked = [*run_dirs], time.monotonic()
    while waiting:
        asks_again = time.monotonic() - asked > _AGAIN_S
        for status in look(waiting):
            if not status.is_live:
                waiting.remove(status.run_dir)
                if status.why != "cancelled while it was queued":
                    print(f"{status.run_dir}: {status.state}{_saved(status.run_dir)}", flush=True)
            elif status.state != "cancelling":  # it has begun since, or was queued again
                _begin(status)
            elif asks_again:
                _signal(status)
                asked = time.monotonic()
        time.sleep(_POLL_S)


def _saved(run_dir: Path) -> str:
    step = jobs.newest_step(run_dir)
    return f"; saved up to step {step}" if step else "; nothing was saved yet"


def _nothing_to_cancel(found: Sequence[Status]) -> str:
    by_hand = [status.run_dir for status in found if status.is_live]
    if by_hand:
        holder = by_hand[0] / LOCK_NAME
        return f"'{by_hand[0]}' runs, and in no job of SLURM: send its processes SIGTERM, and it saves and ends ('{holder}' names it)"
    states = ", ".join(sorted({status.state for status in found}))
    return f"there is nothing to cancel: {'it is' if len(found) == 1 else 'they are'} {states}; see launch/submit.py status"
