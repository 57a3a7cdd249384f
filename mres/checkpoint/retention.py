"""Which checkpoints of a run stay: the newest, every m-th step, the best; and which is the best."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from mres.io.files import write_atomically
from mres.io.json_files import JsonError, read_json

BEST = "best.json"


def surplus(steps: Collection[int], *, keep: int, keep_every: int | None, protected: Collection[int]) -> set[int]:
    """The steps whose checkpoints may go.

    Args:
        steps: of all that there are.
        keep: so many newest stay.
        keep_every: steps that are multiples of it stay.
        protected: steps that stay.
    """
    older = sorted(steps)[:-keep]
    return {step for step in older if not (step in protected or (keep_every and step % keep_every == 0))}


@dataclass(frozen=True, slots=True)
class Best:
    """The checkpoint with the highest value of a figure so far, as best.json says it."""

    step: int
    figure: str
    value: float
    folder: str

    def write(self, root: Path) -> None:
        write_atomically(root / BEST, json.dumps(asdict(self), indent=1).encode())

    @classmethod
    def read(cls, root: Path) -> Best | None:
        """None where there is none, or where what is there is no such file."""
        try:
            found = read_json(root / BEST)
            return cls(int(found["step"]), str(found["figure"]), float(found["value"]), str(found["folder"]))
        except (OSError, JsonError, ValueError, KeyError, TypeError):
            return None
