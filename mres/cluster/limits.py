"""How long a job may run, and how long before its end it is warned."""

import math
import re
from contextlib import suppress
from pathlib import Path

from mres.errors import UserError
from mres.run_folder import METRICS, last_lines

SIGNAL_DELAY_S = 120  # where no save was measured yet: to finish the step and save
_SHORTEST_DELAY_S = 60  # where one was: SLURM looks for jobs to warn every half minute
_LONGEST_DELAY_S = 65535  # that SLURM takes


def parse_time_limit(text: str) -> int:
    """Minutes of one of SLURM's forms: minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS; seconds round up.

    Raises:
        UserError: for any other form, or no time at all.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if match is None:
        raise UserError(f"--time {text!r}: expected minutes (90), HH:MM:SS (12:00:00) or D-HH:MM:SS (2-00:00:00)")
    days, first, second, third = (int(part or 0) for part in match.groups())
    if match[1] is None and match[4] is None:
        first, second, third = 0, first, second  # minutes, not hours, come first
    minutes = math.ceil((((days * 24 + first) * 60 + second) * 60 + third) / 60)
    if minutes < 1:
        raise UserError(f"--time {text!r} is no time; give at least a minute, or none for the partition's limit")
    return minutes


def signal_delay(given: int | None, limit_min: int | None, *, is_requeued: bool, run_dir: Path) -> int:
    """Seconds between SLURM's warning and the time limit: as given, else from what saving takes in this run.

    Raises:
        UserError: the job would have more to do with saving than with training.
    """
    if given is not None and given > _LONGEST_DELAY_S:
        raise UserError(f"--signal-delay {given}: SLURM takes at most {_LONGEST_DELAY_S} seconds")
    delay = given or _delay_of_run(run_dir) or SIGNAL_DELAY_S
    if limit_min is None:
        return delay
    if is_requeued and limit_min * 60 <= 2 * delay:
        raise UserError(
            f"a time limit of {limit_min} minute(s) is too short for a job that is queued again: it is asked to save and end "
            f"{delay} seconds before; give --time {2 * delay // 60 + 1} or more, a shorter --signal-delay, or --max-requeues 0"
        )
    if given is not None and given >= limit_min * 60:
        raise UserError(f"--signal-delay {given} is not below the time limit of {limit_min * 60} seconds; give fewer")
    return delay if given is not None else min(delay, limit_min * 60 // 4)


def _delay_of_run(run_dir: Path) -> int | None:
    """Twice what a step and a checkpoint have taken at most, and a minute; None where no checkpoint was written yet."""
    save_s = step_s = 0.0
    for figures in last_lines(run_dir / METRICS):
        with suppress(KeyError, TypeError):
            save_s = max(save_s, figures["checkpoint_write_s"])
            step_s = max(step_s, figures["step_s"])
    if not save_s:
        return None
    return min(_LONGEST_DELAY_S, math.ceil((_SHORTEST_DELAY_S + 2 * (save_s + step_s)) / 10) * 10)
