"""What becomes of a job whose tasks have ended: by what is known of it, without a SLURM."""

import signal
from dataclasses import replace

import pytest

from mres.cluster.decide import Facts, decide

NOW = 1_000_000.0
# Saved and ended because a signal said so, an hour before the time limit; SLURM gives no reason.
STOPPED = Facts(exit_code=75, now=NOW, state="RUNNING", limit_at=NOW + 3600, ends_at=NOW + 3600)
# While SLURM ends it: EndTime is when that began.
ENDING = replace(STOPPED, state="COMPLETING", ends_at=NOW - 20)
PREEMPTED = {"preempted_at": NOW - 10}
USR2, TERM = 128 + signal.SIGUSR2, 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("facts", "action", "event", "words"),
    [
        (replace(STOPPED, exit_code=0), "end", "ended", "done"),
        (replace(STOPPED, **PREEMPTED), "requeue", "requeued", "preempted"),
        (replace(STOPPED, limit_at=NOW + 150), "requeue", "requeued", "time limit"),
        (STOPPED, "requeue", "requeued", "signal"),
        (replace(STOPPED, limit_at=None, ends_at=None), "requeue", "requeued", "signal"),  # no time limit at all
        (Facts(exit_code=75, now=NOW), "requeue", "requeued", "signal"),  # SLURM does not answer
        # scancel: also close to the time limit, and of tasks that have found no time to save.
        (ENDING, "end", "cancelled", "cancelled"),
        (replace(ENDING, limit_at=NOW + 30), "end", "cancelled", "cancelled"),
        (replace(ENDING, exit_code=137), "end", "cancelled", "cancelled"),
        (replace(ENDING, exit_code=TERM), "end", "cancelled", "cancelled"),
        # What SLURM ends for other reasons, since saving took too long.
        (replace(ENDING, **PREEMPTED), "end", "requeued", "SLURM queues it again"),
        (replace(ENDING, limit_at=NOW - 20), "requeue", "requeued", "time limit"),
        # `submit.py cancel`: SLURM knows of nothing.
        (replace(STOPPED, cancel_is_asked=True), "cancel", "cancelled", "cancelled"),
        (replace(ENDING, cancel_is_asked=True, **PREEMPTED), "end", "cancelled", "cancelled"),
        # A signal before there are handlers.
        (replace(STOPPED, exit_code=USR2), "requeue", "requeued", "signal"),
        (replace(STOPPED, exit_code=TERM, **PREEMPTED), "requeue", "requeued", "preempted"),
        (replace(STOPPED, exit_code=137, **PREEMPTED), "requeue", "requeued", "preempted"),
        (replace(STOPPED, exit_code=2, **PREEMPTED), "end", "failed", "refuses"),
        (replace(STOPPED, exit_code=1), "restart", "restarted", "exit code 1"),
        (replace(STOPPED, exit_code=130), "end", "failed", "interrupted"),
    ],
)
def test_what_becomes_of_it(facts: Facts, action: str, event: str, words: str) -> None:
    decision = decide(facts)
    assert (decision.action, decision.event) == (action, event)
    assert words in decision.reason


def test_requeues_are_bounded() -> None:
    last = replace(STOPPED, restarts=2, max_requeues=3)
    assert decide(last).action == "requeue"
    over = decide(replace(last, restarts=3))
    assert (over.action, over.exit_code) == ("end", 75)
    assert "3 times" in over.reason
    never = decide(replace(STOPPED, max_requeues=0, limit_at=NOW))
    assert (never.action, never.exit_code) == ("end", 75)
    assert never.reason.endswith("time limit is near")
