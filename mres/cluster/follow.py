"""What a rank of a submitted run prints: its log, and on request what is added to it, from one start of the job to the next."""

import sys
import time
from collections import deque
from pathlib import Path

from mres.cluster import jobs
from mres.cluster.script import log_of_rank
from mres.cluster.status import look
from mres.errors import UserError

_POLL_S, _LOOK_S = 0.5, 5.0


class Tail:
    """Copies what is added to a file to stdout."""

    def __init__(self, path: Path, shown: int | None = None) -> None:
        """`shown`: so many bytes of it are known; by default, all that are there."""
        self.path = path
        self.shown = shown if shown is not None else path.stat().st_size if path.exists() else 0

    def show(self) -> bool:
        """Whether there was anything new."""
        if not self.path.exists():
            return False
        with self.path.open("rb") as log:
            log.seek(self.shown)
            added = log.read()
        self.shown += len(added)
        sys.stdout.buffer.write(added)
        sys.stdout.flush()
        return bool(added)


def show(run_dir: Path, rank: int, lines: int) -> None:
    """Prints the last `lines` of a rank's newest log.

    Raises:
        UserError: there is none.
    """
    path = newest_log(run_dir, rank)
    if path is None:
        raise UserError(_without_log(run_dir, rank))
    _print_end(path, lines)


def follow(run_dir: Path, rank: int, lines: int) -> None:
    """Prints the last `lines` and what comes, until the run has ended; waits for a job that has not started yet.

    Raises:
        UserError: the run has ended without a log of that rank.
    """
    tail: Tail | None = None
    looked = 0.0
    ends = False
    while True:
        path = newest_log(run_dir, rank)
        if path is not None and (tail is None or tail.path != path):
            if tail is not None:
                print(f"==> {path}", file=sys.stderr, flush=True)
            tail = Tail(path, _print_end(path, lines) if tail is None else 0)
        more = tail is not None and tail.show()
        if ends and not more:
            break
        if time.monotonic() - looked > _LOOK_S:
            status = look([run_dir])[0]
            if tail is None and not looked and status.is_live:
                print(f"{status.job or run_dir} is {status.state}; waiting for its log", file=sys.stderr, flush=True)
            looked, ends = time.monotonic(), not status.is_live
            continue  # what was written before it ended
        time.sleep(_POLL_S)
    if tail is None:
        raise UserError(_without_log(run_dir, rank))


def newest_log(run_dir: Path, rank: int) -> Path | None:
    """That of the run's newest job, if it has begun; else, of a run on this machine, the one written last."""
    events = jobs.read(run_dir)
    if events:
        path = log_of_rank(run_dir, events[-1].job, str(rank))
        return path if path.exists() else None
    logs = [*(run_dir / jobs.LOGS).glob(f"*_{rank}.log"), *(run_dir / "submitit").glob(f"*_{rank}_log.out")]
    return max(logs, key=lambda log: log.stat().st_mtime, default=None)


def _print_end(path: Path, lines: int) -> int:
    """How many bytes the file has had."""
    with path.open("rb") as log:
        for line in deque(log, maxlen=lines):
            sys.stdout.buffer.write(line)
        sys.stdout.flush()
        return log.tell()


def _without_log(run_dir: Path, rank: int) -> str:
    logs = (run_dir / jobs.LOGS).glob("*.log")
    ranks = sorted({int(number) for log in logs if (number := log.stem.rpartition("_")[2]).isdigit()})
    if ranks:
        return f"--rank {rank}: no log of that rank in '{run_dir / jobs.LOGS}'; there are those of {_short(ranks)}"
    return f"'{run_dir}' has no logs of a job yet; launch/submit.py status says where it is, logs -f waits for it"


def _short(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks)) if len(ranks) < 10 else f"{ranks[0]} to {ranks[-1]}"
