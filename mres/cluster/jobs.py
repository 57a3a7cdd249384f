"""What became of a run's jobs: `<run>/jobs.jsonl`, a line an event, from submission to the end; also what requeues go by."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

from mres.io.append_log import AppendLog
from mres.io.json_files import read_jsonl

JOBS = "jobs.jsonl"
LOGS = "slurm"  # the folder of the jobs' scripts and logs

# cancelling: the user wants it to save and end; what follows is "cancelled".
# restarted: the tasks alone, in the same allocation.
EventName = Literal["submitted", "started", "restarted", "requeued", "ended", "cancelling", "cancelled", "failed"]


@dataclass(frozen=True)
class Event:
    """One line. `job` is SLURM's number (of an array's member: "12_3"), `restart` how often SLURM has started it again,
    `step` the newest checkpoint's, `time` seconds since 1970. Where training has failed, `reached` is the step that it had come
    to, `failed_nodes` are to blame, `lost_nodes` among them do not answer any more."""

    job: str
    event: EventName
    restart: int = 0
    nodes: str = ""
    step: int = 0
    reason: str = ""
    excluded: tuple[str, ...] = ()
    exit_code: int | None = None
    reached: int | None = None
    failed_nodes: tuple[str, ...] = ()
    lost_nodes: tuple[str, ...] = ()
    time: float = field(default_factory=time.time)


def note(run_dir: Path, event: Event) -> None:
    """Appends it.

    Raises:
        OSError: the run's folder does not take it.
    """
    line = json.dumps({"time": round(event.time, 3), **{k: v for k, v in asdict(event).items() if k != "time"}})
    AppendLog(run_dir / JOBS, lambda said: print(said, file=sys.stderr), separator=b"\n").add(line.encode() + b"\n")


def read(run_dir: Path) -> list[Event]:
    """The events of a run, oldest first; none where it was never submitted. Keys of later versions are passed over.

    Raises:
        JsonError: a line that is none.
    """
    path = run_dir / JOBS
    return [_event(value) for _, value in read_jsonl(path, may_be_cut=True)] if path.exists() else []


def cancel_is_asked(run_dir: Path, job: str) -> bool:
    """Whether the job was asked to save and end for good since it was last started."""
    last = [event.event for event in read(run_dir) if event.job == job and event.event in ("started", "cancelling")]
    return last[-1:] == ["cancelling"]


def restarts(run_dir: Path, job: str) -> list[Event]:
    """How often the job was started or queued again, oldest first."""
    return [event for event in read(run_dir) if event.job == job and event.event in ("restarted", "requeued")]


def newest_step(run_dir: Path) -> int:
    """That of the newest checkpoint which is whole; 0 without one."""
    found = (run_dir / "checkpoints").glob("step-*/MANIFEST.json")
    steps = [re.fullmatch(r"step-(\d{8,})", path.parent.name) for path in found]
    return max((int(step[1]) for step in steps if step), default=0)


def job_name(environ: Mapping[str, str]) -> str:
    """The job's number as SLURM's commands take it; in an array, that of the member alone."""
    if array := environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{environ['SLURM_ARRAY_TASK_ID']}"
    return environ["SLURM_JOB_ID"]


def _event(value: dict[str, object]) -> Event:
    known = {f.name: value[f.name] for f in fields(Event) if f.name in value}
    for name in ("excluded", "failed_nodes", "lost_nodes"):
        known[name] = tuple(known.get(name) or ())  # type: ignore[arg-type]
    return Event(**known)  # type: ignore[arg-type]
