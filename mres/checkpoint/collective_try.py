"""What all ranks do at once when they save: they succeed together, or fail together with the same error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from mres.formats.folder import CheckpointError
from mres.io.files import free_bytes

_T = TypeVar("_T")


class CollectiveTry:
    """Ranks of `group` that write `what`; one thread a rank may use it, whichever that is."""

    def __init__(self, group: dist.ProcessGroup, what: Path) -> None:
        self._group, self._what = group, what
        self.is_main = dist.get_rank(group) == 0

    def each(self, action: Callable[[], _T]) -> list[_T]:
        """Runs `action` on every rank; every rank's result, in the order of ranks, on all of them.

        Raises:
            CheckpointError: on all ranks, whatever one of them met, instead of a hang.
        """
        result: _T | None = None
        problem: str | CheckpointError = ""
        try:
            result = action()
        except CheckpointError as error:
            problem = error
        except (Exception, CheckpointException) as error:
            problem = f"{reason(error)}{self._room()}"
        outcomes = [(problem, result)] * dist.get_world_size(self._group)
        dist.all_gather_object(outcomes, (problem, result), group=self._group)
        problems = [found for found, _ in outcomes if found]
        for found in problems:
            if isinstance(found, CheckpointError):
                raise found
        if problems:
            raise CheckpointError(f"checkpoint {self._what} was not written: {min(map(str, problems))[:500]}")
        return [result for _, result in outcomes]  # type: ignore[misc]

    def on_main(self, action: Callable[[], _T]) -> _T:
        """Runs `action` on rank 0; its result on all ranks.

        Raises:
            CheckpointError: on all ranks, what rank 0 met.
        """
        return self.each(action if self.is_main else lambda: None)[0]  # type: ignore[return-value]

    def _room(self) -> str:
        try:
            return f" ({free_bytes(self._what.parent) / 1e6:,.0f} MB were free there)"
        except OSError:  # a disk that is gone must not keep this rank from telling the others
            return ""


def reason(error: BaseException) -> str:
    """Why writing failed, in a line: DCP wraps it into the tracebacks of all ranks, torch into its own terms."""
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": '{error.filename}'" if error.filename else "")
    text = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
    return f"the disk did not take all of a file ({text})" if "inline_container" in text else text
