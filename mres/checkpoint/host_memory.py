"""How much memory a machine, or the job's share of it, has left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

_GROUPS, _MINE = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# What is left of it to libraries, workers and the files' pages.
_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class _Version:
    """How a version of Linux's control groups says it; `inactive`: pages of files, which go when memory is asked for."""

    root: Path
    limit: str
    used: str
    inactive: str


_V1 = _Version(_GROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Version(_GROUPS, "memory.max", "memory.current", "inactive_file")


def available_bytes() -> int:
    """What can be taken before the system, or the limit that SLURM or a container set, ends a process."""
    return min([psutil.virtual_memory().available, *_left_of_limits()])


def _left_of_limits() -> Iterator[int]:
    """Of this process's control group and of all that it lies in."""
    for version, folder in _groups():
        with suppress(OSError, ValueError, KeyError):  # no limit: no file, or "max"
            limit, used = (int((folder / name).read_text()) for name in (version.limit, version.used))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            yield max(0, limit - used + int(stat[version.inactive]))


def _groups() -> Iterator[tuple[_Version, Path]]:
    with suppress(OSError):
        for line in _MINE.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if version := _V1 if "memory" in controllers.split(",") else None if controllers else _V2:
                folder = version.root / path.strip("/")
                yield from (
                    (version, group) for group in (folder, *folder.parents) if group.is_relative_to(version.root)
                )


def machines_without_room(told: Iterable[tuple[str, int, int]]) -> list[str]:
    """What to say of each machine that lacks memory.

    Args:
        told: of every rank, its machine, the bytes that it needs and those that the machine has left.
    """
    needed: dict[str, int] = {}
    left: dict[str, int] = {}
    for machine, bytes_of_rank, available in told:
        needed[machine] = needed.get(machine, 0) + bytes_of_rank
        left[machine] = min(left.get(machine, available), available)
    return [
        f"'{name}' has {left[name] / 1e6:,.0f} MB of memory left, and copies of its ranks' state take "
        f"{num_bytes / 1e6:,.0f} MB"
        for name, num_bytes in needed.items()
        if num_bytes > _SHARE * left[name]
    ]
