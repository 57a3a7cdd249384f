"""What becomes of a job whose step has ended: ended for good, or queued again. Facts in, decision out; SLURM is not asked here."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Literal

from mres.cluster.jobs import Event, EventName
from mres.cluster.restarts import MAX_RESTARTS, Failure, why_not_again, why_not_requeued

PREEMPTED_EXIT = 75  # mres.supervise.stop_request: training saved because it was asked to stop, and can go on
USER_ERROR_EXIT = 2
INTERRUPTED_EXIT = 130
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
    `step` is the newest checkpoint's, `past` how often the job was started or queued again before; `failure` says how training
    failed, if it did, `avoid` names nodes of the job that the run is to keep away from.
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
    max_restarts: int = MAX_RESTARTS
    step: int = 0
    past: tuple[Event, ...] = ()
    failure: Failure | None = None
    avoid: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decision:
    """`action`: start the tasks again, queue the job again (without the nodes of `exclude`), cancel it (its state is to say
    so), or let the batch script end with `exit_code`."""

    action: Literal["end", "restart", "requeue", "cancel"]
    event: EventName
    reason: str
    exit_code: int
    exclude: tuple[str, ...] = ()
    failure: Failure | None = None  # that it follows from


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
    if cause is not None:
        return requeue(facts, cause)
    return _after_failure(facts, facts.failure or Failure(f"a task ended with exit code {facts.exit_code}", 0))


def _after_failure(facts: Facts, failure: Failure) -> Decision:
    """Training goes on from the newest checkpoint: on the same nodes if they can, else on others."""
    if facts.exit_code == INTERRUPTED_EXIT:
        return Decision("end", "failed", "interrupted", facts.exit_code)
    other_nodes = set(facts.avoid) & set(failure.failed_nodes)
    if not other_nodes and (why := why_not_again(failure, facts.step, facts.past, facts.max_restarts)):
        return Decision("end", "failed", f"{failure.reason}; {why}", facts.exit_code, failure=failure)
    if not failure.lost_nodes and not facts.avoid:
        return Decision("restart", "restarted", failure.reason, facts.exit_code, failure=failure)
    if facts.restarts >= facts.max_requeues:
        return Decision("end", "failed", f"{failure.reason}; {_no_more(facts)}", facts.exit_code, failure=failure)
    return Decision("requeue", "requeued", failure.reason, facts.exit_code, facts.avoid, failure)


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
        return requeue(facts, "its time limit is over")
    return Decision("end", "cancelled", "cancelled", facts.exit_code)


def requeue(facts: Facts, cause: str) -> Decision:
    """Of a job that `cause` has stopped, or keeps from starting: queued again, unless that was done too often."""
    if not facts.max_requeues:
        return Decision("end", "ended", cause, PREEMPTED_EXIT)
    why = _no_more(facts) if facts.restarts >= facts.max_requeues else why_not_requeued(facts.step, facts.past)
    if why is not None:
        return Decision("end", "ended", f"{cause}; {why}", PREEMPTED_EXIT)
    return Decision("requeue", "requeued", cause, PREEMPTED_EXIT, facts.avoid)


def _no_more(facts: Facts) -> str:
    return f"requeued {facts.restarts} times, not again" if facts.max_requeues else "not requeued (--max-requeues 0)"


def _why_stopped(facts: Facts) -> str | None:
    """Why training was asked to stop; None where it was not, and ended by itself."""
    if facts.preempted_at is not None:
        return "preempted"
    if facts.exit_code not in _STOPPED:
        return None
    if facts.limit_at is not None and facts.limit_at - facts.now <= facts.signal_delay_s + _SLACK_S:
        return "its time limit is near"
    return "asked to stop by a signal"
