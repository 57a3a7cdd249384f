"""A process's rank and the number of ranks, as its launcher wrote it into the environment; torch is not needed to read it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from mres.errors import UserError

REMEDY = "start through torchrun, deepspeed or srun, or without any launcher on one rank"


@dataclass(frozen=True, slots=True)
class RankEnv:
    """Rank and number of ranks; `local_*` count those of this machine."""

    rank: int
    size: int
    local_rank: int
    local_size: int


def read_rank_env() -> RankEnv:
    """What RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE give; without any of them, one rank alone.

    Raises:
        UserError: a value that is no number or does not fit the others, or one that is missing.
    """
    rank, size = _number("RANK", 0), world_size()
    if rank >= size:
        raise UserError(f"RANK={rank} does not fit WORLD_SIZE={size}; {REMEDY}")
    # A default would put all ranks of a machine on its first GPU.
    local_rank = _number("LOCAL_RANK", 0 if size == 1 else None)
    here = local_size() or size
    if local_rank >= here:
        raise UserError(f"LOCAL_RANK={local_rank} does not fit LOCAL_WORLD_SIZE={here}; {REMEDY}")
    return RankEnv(rank, size, local_rank, here)


def world_size() -> int:
    """The number of ranks; of it alone a run can be planned (`--dry-run`).

    Raises:
        UserError: it is not a number from 1.
    """
    size = _number("WORLD_SIZE", 1)
    if size < 1:
        raise UserError(f"the environment variable WORLD_SIZE={size} is not a number of ranks; {REMEDY}")
    return size


def local_size() -> int | None:
    """The number of ranks of this machine, where the launcher says it; deepspeed's has a name of its own for it.

    Raises:
        UserError: it is not a number.
    """
    name = next((name for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE") if name in os.environ), None)
    return None if name is None else _number(name, None)


def _number(name: str, default: int | None) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdigit():
        found = f"{name} is not set" if text is None else f"{name}={text!r} is not a whole number"
        raise UserError(f"the environment variable {found}; {REMEDY}")
    return int(text)
