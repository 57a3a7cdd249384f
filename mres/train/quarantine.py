"""Broken records of the data: named once each, and only so many of them in a run."""

from collections.abc import Iterable

from mres.errors import UserError
from mres.run_folder import QUARANTINE, RunLog


def quarantine(
    messages: Iterable[str], step: int, known: set[str], num_images: int, max_fraction: float, log: RunLog
) -> None:
    """Names the records of step `step` (from 1) that no earlier one met, and adds them to `known`.

    Args:
        messages: of all ranks; one a record.
        max_fraction: of the epoch's `num_images` that may be broken.

    Raises:
        UserError: there are more of them.
    """
    for message in messages:
        if message in known:
            continue
        known.add(message)
        log.append(QUARANTINE, {"step": step, "error": message})
        if len(known) > max_fraction * num_images:
            raise UserError(
                f"{message}\n{len(known)} broken images are more than data.max_bad_fraction="
                f"{max_fraction:g} of {num_images} allows; repair the shards "
                "(python tools/shard.py verify names all of them) or raise it"
            )
        log.say(f"warning: another image takes its place: {message}")
