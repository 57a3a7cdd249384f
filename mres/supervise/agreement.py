"""Agreement before the start: all ranks run the same steps of the same config, code and packages on the same data.

A difference ends the run on all ranks within seconds, with the ranks and keys named; found later, it would be a
collective that waits for its time-out, or a model that is silently trained by two kinds of code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mres.errors import UserError

_MOST_LINES = 20


def check_agreement(all_gather_object: Callable[[Any], list[Any]], mine: Mapping[str, str | None]) -> None:
    """Compares `mine` over all ranks, which call it together.

    Raises:
        UserError: on every rank, naming each key that differs and which ranks have which value of it.
    """
    text = json.dumps(mine, sort_keys=True)
    # In all runs but the wrong ones 16 bytes a rank are all that travels.
    if len(set(all_gather_object(hashlib.md5(text.encode(), usedforsecurity=False).digest()))) == 1:
        return
    lines = differences(all_gather_object(mine))
    left_out = [f"… and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else []
    listed = "\n".join(f"  {line}" for line in [*lines[:_MOST_LINES], *left_out])
    raise UserError(
        f"the ranks do not agree on what to run:\n{listed}\nstart all of them with the same command, files and environment"
    )


def differences(all_ranks: Sequence[Mapping[str, str | None]]) -> list[str]:
    """A line for each key on which ranks differ; the ranks that have the same value are named together."""
    found = []
    for key in dict.fromkeys(key for facts in all_ranks for key in facts):
        by_value: dict[str | None, list[int]] = {}
        for rank, facts in enumerate(all_ranks):
            by_value.setdefault(facts.get(key), []).append(rank)
        if len(by_value) > 1:
            few_first = sorted(by_value.items(), key=lambda item: (len(item[1]), item[1]))
            found.append(
                f"{key}: " + ", ".join(f"{in_words(ranks)} {_has(ranks)} {value}" for value, ranks in few_first)
            )
    return found


def in_words(ranks: Sequence[int]) -> str:
    """Ranks [0, 1, 2, 5] as "ranks 0-2, 5"."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][-1] + 1:
            spans[-1] = [spans[-1][0], rank]
        else:
            spans.append([rank])
    text = ", ".join("-".join(map(str, span)) for span in spans)
    return f"rank {text}" if len(ranks) == 1 else f"ranks {text}"


def _has(ranks: Sequence[int]) -> str:
    return "has" if len(ranks) == 1 else "have"
