"""How often training that has failed is started again: any number of times while it gains steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mres.cluster.jobs import Event

MAX_RESTARTS = 3  # without a step gained
# Preempted again and again before the first checkpoint: the cluster's doing, but no use either.
MAX_IDLE_REQUEUES = 10


@dataclass(frozen=True)
class Failure:
    """How a step ended that was not asked to: why, in words; the step of training that it had reached (0: none yet); nodes
    that are lost; nodes that are to blame, those among them."""

    reason: str
    reached: int
    lost_nodes: tuple[str, ...] = ()
    failed_nodes: tuple[str, ...] = ()


def why_not_again(failure: Failure, step: int, past: Sequence[Event], most: int) -> str | None:
    """Why training is not started again after `failure`, with the newest checkpoint of `step`; None: it is.

    `past` are the job's earlier restarts and requeues, oldest first; `most` of them are allowed without a step gained.
    """
    if most == 0:
        return "it is not started again (--max-restarts 0)"
    failures = [event for event in past if event.reached is not None]
    is_own = not failure.lost_nodes  # training itself failed, not a machine under it
    if failures and is_own and failures[-1].reached == failure.reached and not failures[-1].lost_nodes:
        return f"it ended at step {failure.reached} the last time, too ({failures[-1].reason}): not started again"
    idle = _without_gain(failures, step)
    if idle >= most:
        return f"started again {idle} time(s) without a step gained, not again (--max-restarts {most})"
    return None


def why_not_requeued(step: int, past: Sequence[Event]) -> str | None:
    """Why a job that was only asked to stop is not queued again; None: it is."""
    idle = _without_gain(past, step)
    if idle >= MAX_IDLE_REQUEUES:
        return f"queued again {idle} times without a step gained, not again"
    return None


def _without_gain(past: Sequence[Event], step: int) -> int:
    """How many of the last ones found the same newest checkpoint."""
    count = 0
    for event in reversed(past):
        if event.step < step:
            break
        count += 1
    return count
