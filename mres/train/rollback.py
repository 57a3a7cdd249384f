"""Going back to the last good checkpoint, in the same process, when too many steps had to be skipped.

Training goes on with the batches behind those that were seen: what upset it, if it was the data, does not come again.
"""

from __future__ import annotations

from pathlib import Path

from mres.checkpoint import store
from mres.errors import UserError
from mres.parallel.strategy import Strategy
from mres.run_folder import BAD_STEPS, ROLLBACKS, RunLog


class DivergenceError(UserError):
    """Too many steps had to be skipped.

    Attributes:
        began: steps done before the first of them.
        reached: steps done when it was seen.
    """

    def __init__(self, message: str, began: int, reached: int) -> None:
        super().__init__(message)
        self.began, self.reached = began, reached


def last_good(
    trouble: DivergenceError, root: Path, strategy: Strategy, *, rollbacks: int, allowed: int
) -> store.Checkpoint:
    """The newest sound checkpoint of before the trouble; rank 0 looks, all take what it found.

    Raises:
        UserError: the trouble, and why there is no going back.
    """
    if not allowed:
        raise UserError(str(trouble))
    if rollbacks >= allowed:
        raise UserError(f"{trouble}; the run went back {rollbacks} times before (train.max_rollbacks={allowed})")
    found = store.newest_sound(root, at_most=trouble.began) if strategy.world.is_main else None
    found = strategy.all_gather_object(found)[0]
    if found is None:
        raise UserError(
            f"{trouble}; there is no checkpoint of before step {trouble.began + 1} to go back to "
            "(checkpoint.every, checkpoint.keep)"
        )
    return found


def note(log: RunLog, trouble: DivergenceError, step: int, skipped_batches: int) -> None:
    """Rewinds the run's files to `step` steps; what was skipped since moves from bad_steps.jsonl into the note."""
    if log.enabled:
        skipped = [line for line in log.lines(BAD_STEPS) if line["step"] > step]
        log.rewind(step)
        line = {"step": step, "reached": trouble.reached, "skipped_batches": skipped_batches, "reason": str(trouble)}
        log.append(ROLLBACKS, {**line, "bad_steps": skipped})
    log.say(
        f"warning: {trouble}; going back to step {step}, and on with the batches after those of step {trouble.reached}"
    )
