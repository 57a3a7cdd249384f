"""Each machine before training: what would end the run later, or lose what it writes, ends it now and is named.

`check_machine` is asked before the ranks meet, and what it refuses reaches rank 0 as every refusal does. `compare_machines`
finds what can only be seen together: a run folder that is another one there, a clock that is off.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mres.config import Config
from mres.errors import UserError
from mres.io.files import write_atomically
from mres.supervise.finding import Finding, problem, warning
from mres.supervise.load import traffic_of
from mres.supervise.machine import check_gpus_are_seen, check_limits, check_shared_memory
from mres.supervise.rank_env import read_rank_env

if TYPE_CHECKING:
    from mres.supervise.world import World

_MARK = ".seen-by-all-"
_SEEN_WITHIN_S = 5.0  # a network file system may show a new file late
_LOOK_EVERY_S = 0.1
_SKEW_S, _MOST_SKEW_S = 30.0, 3600.0
_MOST_LINES = 20


class _Machine(NamedTuple):
    """What its first rank tells."""

    host: str
    rank: int
    clock: float
    findings: list[Finding]

    def of_level(self, level: str) -> list[str]:
        return [f"{self.host} (rank {self.rank}): {_in_words(f)}" for f in self.findings if f.level == level]


def check_machine(config: Config) -> list[Finding]:
    """What may become trouble here; the first rank of a machine looks, the others have nothing to say.

    Raises:
        UserError: what would end the run.
    """
    env = read_rank_env()
    if env.local_rank:
        return []
    load = traffic_of(config, env.local_size)
    gpus = check_gpus_are_seen()
    findings = [gpus, check_shared_memory(load), *check_limits(load, gpus=_has_driver())]
    if problems := [_in_words(finding) for finding in findings if finding.level == "problem"]:
        raise UserError("\n".join(problems))
    return [finding for finding in findings if finding.level == "warning"]


def compare_machines(world: World, run_dir: Path, findings: list[Finding]) -> None:
    """Rank 0 says what was found on all machines; all ranks together, once they have met.

    Raises:
        UserError: on every rank: a machine that does not see the run's folder, a clock that is far off.
    """
    mark = _gathered(world, _leave_mark(run_dir) if world.is_main and world.size > 1 else None)[0]
    here = world.local_rank == 0
    clock = time.time()  # all have just been together
    if here and mark is not None:
        findings = [*findings, *_look_for(run_dir, mark)]
    machines = [
        m for m in _gathered(world, _Machine(socket.gethostname(), world.rank, clock, findings) if here else None) if m
    ]
    if world.is_main and mark is not None:
        with suppress(OSError):
            (run_dir / mark).unlink()
    machines = [m._replace(findings=[*m.findings, *_skew(m.clock - machines[0].clock)]) for m in machines]
    if problems := [line for machine in machines for line in machine.of_level("problem")]:
        raise UserError(_cut(problems))
    if world.is_main and (warnings := [line for machine in machines for line in machine.of_level("warning")]):
        print(f"warning: {_cut(warnings)}", file=sys.stderr, flush=True)


def _gathered(world: World, mine: Any) -> list[Any]:
    import torch.distributed as dist

    told = [mine] * world.size
    if world.size > 1:
        dist.all_gather_object(told, mine)
    return told


def _leave_mark(run_dir: Path) -> str | None:
    """A new file, which no machine can know of yet; None where none can be made, which is said when the run's own are."""
    name = f"{_MARK}{os.getpid()}-{time.time_ns()}"
    with suppress(OSError):
        for left_over in run_dir.glob(f"{_MARK}*"):  # of a start that was killed
            left_over.unlink()
        write_atomically(run_dir / name, b"")
        return name
    return None


def _look_for(run_dir: Path, mark: str) -> list[Finding]:
    deadline = time.monotonic() + _SEEN_WITHIN_S
    while not (run_dir / mark).exists():
        if time.monotonic() > deadline:
            found = f"'{run_dir.absolute()}' is not the folder that rank 0 has"
            remedy = (
                "mount its file system here, name a run.dir that all machines see, or leave this one out (--exclude)"
            )
            return [problem("run folder", found, remedy)]
        time.sleep(_LOOK_EVERY_S)
    return []


def _skew(seconds: float) -> list[Finding]:
    if abs(seconds) < _SKEW_S:
        return []
    level = problem if abs(seconds) > _MOST_SKEW_S else warning
    return [level("clock", f"{seconds:+.0f} s from rank 0's", "ntp or chrony on both machines")]


def _has_driver() -> bool:
    return Path("/proc/driver/nvidia").is_dir()


def _in_words(finding: Finding) -> str:
    return f"{finding.what}: {finding.found}; {finding.remedy}"


def _cut(lines: list[str]) -> str:
    more = [f"… and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else []
    return "\n".join([*lines[:_MOST_LINES], *more])
