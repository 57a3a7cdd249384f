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
_COMPLETING = "COMPLETING"
# A signal that comes during the imports finds no handler and ends the task: nothing is lost, nothing to be saved.
_STOPPED = (PREEMPTED_EXIT, 128 + signal.SIGUSR2, 128 + signal.SIGTERM)


@dataclass(frozen=True)
class Facts:
    """What is known when the step has ended.

    `exit_code` is that of the task that ended badly first. `state` and the times are of the job, as SLURM tells them (None:
    it does not): `limit_at` is when its time limit is over, `ends_at` too, but of a job that SLURM ends already when it began to.
    """

    exit_code: int
    now: float
    state: str | None = None
    preempted_at: float | None = None
    limit_at: float | None = None
    ends_at: float | None = None
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
    if facts.state == _COMPLETING:
        return _ended_by_slurm(facts)
    if facts.cancel_is_asked:
        return Decision("cancel", "cancelled", "cancelled", facts.exit_code)
    if facts.exit_code == USER_ERROR_EXIT:
        return Decision("end", "failed", "training refuses its config, its data or the machine", facts.exit_code)
    cause = _why_stopped(facts)
    if cause is None:
        return Decision("end", "failed", f"a task ended with exit code {facts.exit_code}", facts.exit_code)
    return _requeue(facts, cause)


def _ended_by_slurm(facts: Facts) -> Decision:
    """SLURM ends the job already: it was cancelled, or what it was told to save took too long.

    One that is cancelled in its grace time looks like one whose grace time is over: neither is queued again from here.
    """
    if facts.cancel_is_asked:
        return Decision("end", "cancelled", "cancelled", facts.exit_code)
    if facts.preempted_at is not None:
        return Decision(
            "end", "requeued", "preempted; its grace time is over, and SLURM queues it again", PREEMPTED_EXIT
        )
    if facts.limit_at is not None and facts.ends_at is not None and facts.ends_at >= facts.limit_at - 1:
        return _requeue(facts, "its time limit is over")
    return Decision("end", "cancelled", "cancelled", facts.exit_code)


def _requeue(facts: Facts, cause: str) -> Decision:
    if facts.restarts >= facts.max_requeues:
        times = f"; requeued {facts.restarts} times, not again" if facts.max_requeues else ""
        return Decision("end", "ended", f"{cause}{times}", PREEMPTED_EXIT)
    return Decision("requeue", "requeued", cause, PREEMPTED_EXIT)


def _why_stopped(facts: Facts) -> str | None:
    """Why training was asked to stop; None where it was not, and ended by itself."""
    if facts.preempted_at is not None:
        return "preempted"
    if facts.exit_code not in _STOPPED:
        return None
    if facts.limit_at is not None and facts.limit_at - facts.now <= facts.signal_delay_s + _SLACK_S:
        return "its time limit is near"
    return "asked to stop by a signal"
