"""What has become of runs that were submitted: from SLURM where it can be asked, and from the files in their folders."""

import shutil
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

from mres.checkpoint.retention import Best
from mres.cluster import jobs, slurm
from mres.cluster.sweep import member_number
from mres.io.json_files import JsonError, read_json
from mres.run_folder import EVALUATIONS, METRICS, last_lines, read_lines
from mres.supervise.heartbeat import FAILED, Beat, file_system_time, is_silent, read_beats

_FIGURES = (("object", "mIoU"), ("part", "mIoU"))  # the first that there is, where the run keeps no best checkpoint

_PACE_OF = 20  # lines of metrics: one alone may have waited for something


@dataclass(frozen=True)
class Progress:
    """How far a run has come, by its heartbeats, metrics, evaluations and checkpoints."""

    step: int
    saved: int
    last_step: int | None
    step_s: float | None
    loss: float | None
    best: str

    @property
    def steps(self) -> str:
        return f"{self.step}/{self.last_step}" if self.last_step is not None else str(self.step)

    @property
    def left(self) -> str:
        """How long training goes on at the present pace; "" where that is not known."""
        if self.last_step is None or self.step_s is None:
            return ""
        return str(timedelta(seconds=round((self.last_step - self.step) * self.step_s)))


@dataclass(frozen=True)
class Status:
    """One run. `state` is one word in SLURM's sense, or what its last event says; `why` may be empty."""

    run_dir: Path
    state: str
    why: str
    progress: Progress
    events: tuple[jobs.Event, ...]
    nodes: str = ""

    @property
    def job(self) -> str:
        return self.events[-1].job if self.events else ""

    @property
    def restarts(self) -> int:
        """How often the tasks were started again, in the same job or in a new one."""
        return max(0, sum(event.event in ("started", "restarted") for event in self.events) - 1)

    @property
    def is_done(self) -> bool:
        return self.state == "done"

    @property
    def is_live(self) -> bool:
        return self.state in ("pending", "running", "cancelling")


def look(run_dirs: Sequence[Path]) -> list[Status]:
    """Where these runs are; SLURM is asked once for all of them.

    Raises:
        JsonError: a run's jobs.jsonl is none.
    """
    outputs = _outputs()
    events = {run_dir: _events(run_dir, outputs) for run_dir in run_dirs}
    known = _ask_slurm(its[-1].job for its in events.values() if its)
    found = []
    for run_dir, its in events.items():
        beats = read_beats(run_dir)
        queued = known.get(its[-1].job) if known is not None and its else None
        state, why = _state(its, queued, known is not None, run_dir, beats)
        found.append(Status(run_dir, state, why, _progress(run_dir, beats), its, queued.nodes if queued else ""))
    return found


def live_jobs(run_dir: Path, noted: Collection[str], outputs: Mapping[str, str]) -> list[str]:
    """Those of `outputs` (`slurm.outputs_of_jobs`) that are the run's: by what was noted of it; of scripts that were given to
    sbatch by hand, by where they write to.

    Raises:
        JsonError: the run is said to be a sweep's, whose file is none.
    """
    logs, number = (run_dir / jobs.LOGS).resolve(), member_number(run_dir)
    logs_of_sweep = (run_dir.parent / jobs.LOGS).resolve()
    found = []
    for job, output in outputs.items():
        folder = Path(output).parent.resolve()
        is_member = number is not None and folder == logs_of_sweep and job.endswith(f"_{number}")
        if job in noted or folder == logs or is_member:
            found.append(job)
    return found


def _outputs() -> Mapping[str, str]:
    with suppress(slurm.SlurmError):  # there is none, or it does not answer
        return slurm.outputs_of_jobs()
    return {}


def _events(run_dir: Path, outputs: Mapping[str, str]) -> tuple[jobs.Event, ...]:
    """Those noted; and the submission by hand of a job that has not begun yet, of which nothing is."""
    noted = jobs.read(run_dir)
    known = {event.job for event in noted}
    by_hand = (job for job in live_jobs(run_dir, known, outputs) if job not in known)
    return (*noted, *(jobs.Event(job, "submitted") for job in by_hand))


def _ask_slurm(numbers: Iterable[str]) -> Mapping[str, slurm.Queued] | None:
    """What SLURM says of these jobs; None where it cannot be asked."""
    if shutil.which("squeue") is None:
        return None
    wanted = [*numbers]
    try:
        return slurm.queue(wanted) if wanted else {}
    except slurm.SlurmError:
        return None


def _state(
    events: Sequence[jobs.Event],
    queued: "slurm.Queued | None",
    slurm_answers: bool,
    run_dir: Path,
    beats: Mapping[int, Beat],
) -> tuple[str, str]:
    if not events:
        return _by_beats(run_dir, beats) or ("not submitted", "")
    last = newest(events)
    is_over = last.event in ("ended", "failed", "cancelled")
    if queued is not None and queued.is_live and (queued.state == "PENDING" or not is_over):
        if last.event == "cancelling":
            return "cancelling", "it saves first"
        if queued.state == "PENDING" or last.event == "requeued":
            return "pending", queued.reason
        return "running", _silent(run_dir, beats, events)
    if is_over:
        state = ("done" if last.exit_code == 0 else "stopped") if last.event == "ended" else last.event
        return state, "" if state == "done" else last.reason
    if queued is not None:  # it ended, and the controller could not say so
        return queued.state.lower(), "as SLURM says"
    if slurm_answers:
        return "gone", f"SLURM does not know job {last.job} any more, and nothing tells how it ended"
    by_beats = _by_beats(run_dir, beats)
    return by_beats or (last.event, "SLURM cannot be asked on this machine")


def newest(events: Sequence[jobs.Event]) -> jobs.Event:
    """The last one of the last job; a job may have begun before its submission is noted."""
    its = [event for event in events if event.job == events[-1].job]
    return next((event for event in reversed(its) if event.event != "submitted"), its[-1])


def _by_beats(run_dir: Path, beats: Mapping[int, Beat]) -> tuple[str, str] | None:
    """What the ranks last wrote of themselves; None where there is nothing of the kind."""
    if not beats:
        return None
    now = file_system_time(run_dir)
    for beat in beats.values():
        if beat.phase == FAILED:
            return "failed", f"rank {beat.rank}: {beat.note}"
    if any(is_silent(beat, now) for beat in beats.values()):
        return "silent", "its ranks have neither ended nor written of late"
    return ("running", "") if any(beat.runs for beat in beats.values()) else ("ended", "")


def _silent(run_dir: Path, beats: Mapping[int, Beat], events: Sequence[jobs.Event]) -> str:
    """Which ranks of this start say nothing; "" where all do."""
    now = file_system_time(run_dir)
    ranks = [str(beat.rank) for beat in beats.values() if beat.written > newest(events).time and is_silent(beat, now)]
    return f"silent: rank {', '.join(ranks[:8])}; tools/doctor.py {run_dir}" if ranks else ""


def _progress(run_dir: Path, beats: Mapping[int, Beat]) -> Progress:
    lines = last_lines(run_dir / METRICS)
    metrics = lines[-1] if lines else {}
    paces = [line["step_s"] for line in lines[-_PACE_OF:] if isinstance(line.get("step_s"), float)]
    saved = jobs.newest_step(run_dir)
    under_way = max((beat.step - 1 for beat in beats.values()), default=0)
    return Progress(
        step=max(saved, under_way, int(metrics.get("step", 0))),
        saved=saved,
        last_step=_planned(run_dir),
        step_s=median(paces) if paces else None,
        loss=metrics.get("loss"),
        best=_best(run_dir),
    )


def _planned(run_dir: Path) -> int | None:
    """How many steps the run is to have, as its last start noted."""
    try:
        value = read_json(run_dir / "environment.json")["last_step"]
    except (OSError, JsonError, LookupError, TypeError):
        return None
    return value if isinstance(value, int) else None


def _best(run_dir: Path) -> str:
    """The best figure of the evaluations so far, and where."""
    if (kept := Best.read(run_dir / "checkpoints")) is not None:
        return _figure(kept.figure, kept.value, kept.step)
    for group, name in _FIGURES:
        values = [(line[group][name], line["step"]) for line in _evaluations(run_dir) if line.get(group, {}).get("num")]
        if values:
            return _figure(f"{group}.{name}", *max(values))
    return ""


def _evaluations(run_dir: Path) -> list[dict[str, Any]]:
    try:
        return read_lines(run_dir / EVALUATIONS)
    except JsonError:
        return []


def _figure(name: str, value: float, step: int) -> str:
    return f"{name} {value:.4f} at {step}"


def run_text(status: Status) -> str:
    """One run, for people: where it is, and every event of its jobs."""
    progress = status.progress
    about = [status.state, f"job {status.job}" if status.job else "", f"on {status.nodes}" if status.nodes else ""]
    lines = [f"{status.run_dir}: {', '.join(filter(None, about))}" + (f" ({status.why})" if status.why else "")]
    pace = f", {progress.step_s:.2f} s each" if progress.step_s else ""
    left = f", {progress.left} left" if status.state == "running" and progress.left else ""
    loss = f", loss {progress.loss:.4f}" if progress.loss is not None else ""
    lines.append(f"  steps: {progress.steps}{pace}{left}{loss}; the newest checkpoint is of step {progress.saved}")
    if progress.best:
        lines.append(f"  best: {progress.best}")
    lines.append(f"  restarts: {status.restarts}")
    if status.state in ("failed", "stopped", "gone"):
        lines.append(f"  why: python launch/submit.py logs {status.run_dir}")
    return "\n".join([*lines, *map(_event_text, status.events)])


def _event_text(event: jobs.Event) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.time))
    nodes = f" on {event.nodes}" if event.event == "started" else ""
    excluded = f", without {', '.join(event.excluded)}" if event.excluded else ""
    step = f" at step {event.step}" if event.step else ""
    return (
        f"  {when}  job {event.job} {event.event}{nodes}{step}"
        + (f": {event.reason}" if event.reason else "")
        + excluded
    )


def sweep_text(found: Sequence[Status]) -> str:
    """A table of a sweep's members, and how many are in which state."""
    states = [status.state for status in found]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    header = ("member", "state", "job", "restarts", "step", "left", "loss", "best", "")
    return f"{table([header, *map(_row, found)])}\n{len(found)} members: {counts}"


def _row(status: Status) -> tuple[str, ...]:
    progress = status.progress
    loss = "" if progress.loss is None else f"{progress.loss:.4f}"
    left = progress.left if status.state == "running" else ""
    where = (status.run_dir.name, status.state, status.job, str(status.restarts))
    return (*where, progress.steps, left, loss, progress.best, status.why)


def table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
