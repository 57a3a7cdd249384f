"""What becomes of a job whose step has ended: ended for good, or queued again. Facts in, decision out; SLURM is not asked here."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Literal

from mres.cluster.jobs import EventName

PREEMPTED_EXIT = 75  # mres.supervise.stop_request: training saved because it was asked to stop, and can go on
USER_ERROR_EXIT = 2
# SLURM looks for jobs to warn every half minute, and warns up to a minute early; saving takes its time.
_SLACK_S = 90.0


@dataclass(frozen=True)
class Facts:
    """What is known when the step has ended.

    `state`, `preempted_at` and `limit_at` are of the job, as SLURM tells them (None: it does not); `limit_at` is
    when its time limit is over, whatever has ended it. `signal` is what the first task that ended was ended by.
    """

    exit_code: int
    now: float
    state: str | None = None
    preempted_at: float | None = None
    limit_at: float | None = None
    signal: int | None = None
    restarts: int = 0
    max_requeues: int = 100
    signal_delay_s: int = 120
    cancel_is_asked: bool = False


@dataclass(frozen=True)
class Decision:
    """`action`: queue the job again, cancel it (its state is to say so), or let the batch script end with `exit_code`."""

    action: Literal["end", "requeue", "cancel"]
    event: EventName
    reason: str
    exit_code: int
    exclude: tuple[str, ...] = ()


def decide(facts: Facts) -> Decision:
    if facts.exit_code == 0:
        return Decision("end", "ended", "training is done", 0)
    if is_cancelled(facts):
        return Decision("cancel", "cancelled", "cancelled", facts.exit_code)
    if facts.exit_code == USER_ERROR_EXIT:
        return Decision("end", "failed", "training refuses its config, its data or the machine", facts.exit_code)
    cause = why_stopped(facts)
    if cause is None:
        return Decision("end", "failed", f"a task ended with exit code {facts.exit_code}", facts.exit_code)
    if facts.restarts >= facts.max_requeues:
        times = f"; requeued {facts.restarts} times, not again" if facts.max_requeues else ""
        return Decision("end", "ended", f"{cause}{times}", PREEMPTED_EXIT)
    return Decision("requeue", "requeued", cause, PREEMPTED_EXIT)


def is_cancelled(facts: Facts) -> bool:
    """Whether somebody wants the job to end for good. SLURM says COMPLETING after scancel, and also while it ends a job
    that it queues again itself (preempted, its grace time over) or whose time is up."""
    if facts.cancel_is_asked or facts.state == "CANCELLED":
        return True
    return facts.state == "COMPLETING" and facts.preempted_at is None and not _time_is_up(facts)


def why_stopped(facts: Facts) -> str | None:
    """Why training was asked to stop; None where it was not, and ended by itself."""
    # A signal that comes during the imports finds no handler and ends the task: nothing is lost, nothing to be saved.
    if facts.preempted_at is not None:
        return "preempted"
    if facts.exit_code != PREEMPTED_EXIT and facts.signal not in (signal.SIGUSR2, signal.SIGTERM):
        return None
    if _time_is_up(facts):
        return "the time limit is near"
    return "asked to stop by a signal"


def _time_is_up(facts: Facts) -> bool:
    return facts.limit_at is not None and facts.limit_at - facts.now <= facts.signal_delay_s + _SLACK_S
