"""A run's folder read from outside: which rank the others wait for, which is dead, which never came."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from mres.errors import UserError
from mres.io.files import open_regular
from mres.io.json_files import MAX_LINE_BYTES, JsonError, parse_object
from mres.supervise.finding import Finding, ok, problem, warning
from mres.supervise.heartbeat import ENDED, FAILED, FOLDER, LOST, Beat, file_system_time, is_silent, lagging, read_beats

_HANGS_S, _HANGS_STEPS = 30.0, 10
# What may take long although nothing is wrong, and with few collectives or none.
_LONG = ("start", "data", "checkpoint", "evaluate")


def diagnose(run_dir: Path) -> list[Finding]:
    """What the heartbeats of a run say, problems first.

    Raises:
        UserError: there are none.
    """
    beats = read_beats(run_dir)
    if not beats:
        raise UserError(
            f"no heartbeats in '{run_dir / FOLDER}': no run's folder, one that has not started, or train.heartbeat=false"
        )
    newest = max(beats.values(), key=lambda beat: beat.written)
    now = max(file_system_time(run_dir), newest.written)
    here = {r: b for r, b in beats.items() if r < newest.world_size and b.written >= newest.came - 1}
    findings = _never_came(newest, here)
    for beat in here.values():
        findings += _judge(beat, now)
    if not any(f.level == "problem" for f in findings):
        findings += _compare(run_dir, here, now)
    return sorted(findings, key=lambda finding: finding.level != "problem")


def _never_came(newest: Beat, here: Mapping[int, Beat]) -> list[Finding]:
    missing = [r for r in range(newest.world_size) if r not in here]
    if not missing:
        return []
    found = f"never came to this start of {newest.world_size} ranks"
    return [problem(f"rank {', '.join(map(str, missing))}", found, "their logs, and whether they were started at all")]


def _judge(beat: Beat, now: float) -> list[Finding]:
    """What a rank's own file and, on this machine, its process say of it."""
    what, where = f"rank {beat.rank}", f"{beat.host}, pid {beat.pid}"
    place = f"step {beat.step}, {beat.phase}"
    if beat.phase == FAILED:
        return [problem(what, f"{where}: {beat.note} ({_ago(beat.silent_s(now))})", "its log")]
    if beat.phase == LOST:
        return [warning(what, f"{where}: ended because {beat.note}", "what is said of that rank")]
    if beat.phase == ENDED:
        return []
    silent = beat.silent_s(now)
    state = _process_state(beat) if beat.host == socket.gethostname() else None
    if state == "dead":
        found = f"died in {place} ({where}), {_ago(silent)}"
        return [problem(what, found, "its log; `dmesg` tells whether memory ran out; the same command goes on")]
    if state == "stopped":
        found = f"is stopped in {place} ({where}), for {silent:.0f} s"
        return [problem(what, found, f"`kill -CONT {beat.pid}`, or leave the debugger")]
    if is_silent(beat, now):
        found = f"is silent in {place} ({where}), for {silent:.0f} s: dead, stopped, or its machine is lost"
        return [problem(what, found, f"look at {beat.host}: `ps -p {beat.pid}`, `py-spy dump --pid {beat.pid}`")]
    return []


def _process_state(beat: Beat) -> str:
    """ "dead", "stopped" or "runs"; a process that is younger than the heartbeat's, by this machine's clock, is another."""
    import psutil  # type: ignore[import-untyped]

    try:
        process = psutil.Process(beat.pid)
        status = process.status()
        if process.create_time() > beat.started + 1 or status in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return "dead"
    except psutil.NoSuchProcess:
        return "dead"
    return "stopped" if status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP) else "runs"


def _compare(run_dir: Path, here: Mapping[int, Beat], now: float) -> list[Finding]:
    """Of ranks that all live: which of them the others wait for, if they have waited for long."""
    running = [beat for beat in here.values() if beat.runs]
    if not running:
        last = max(beat.step for beat in here.values())
        return [ok("run", f"all {len(here)} rank(s) ended in order, the last in step {last}")]
    patience = max(_HANGS_S, _HANGS_STEPS * _seconds_a_step(run_dir))
    behind = [beat for beat in lagging(here) if beat.idle_s(now) > patience]
    if behind:
        return [_waited_for(beat, running, now) for beat in behind]
    place = f"step {running[0].step}, {running[0].phase}"
    if min(beat.idle_s(now) for beat in running) > patience:  # all are at one place: a rank behind would be named above
        waited = min(beat.phase_s(now) for beat in running)
        found = f"all {len(running)} rank(s) are in {place}, for {waited:.0f} s"
        return [_finding(running[0], "run", found, _remedy_for_all(run_dir, running[0]))]
    return [ok("run", f"{len(running)} rank(s) run, rank {running[0].rank} in {place}")]


def _waited_for(beat: Beat, running: Sequence[Beat], now: float) -> Finding:
    found = f"the others wait for it: {beat.status(now)} ({beat.host}, pid {beat.pid})"
    ahead = sorted({other.collectives for other in running if other.moves == beat.moves} - {beat.collectives})
    if ahead:
        others = f"{ahead[0]}" if len(ahead) == 1 else f"{ahead[0]} to {ahead[-1]}"
        found += f"; it has begun {beat.collectives} collectives, the others {others}"
    what = f"rank {beat.rank}"
    remedy = "`py-spy dump --pid` on it; data: the file system; forward, backward: its GPU (`nvidia-smi`, `dmesg`)"
    if any(other.moves > beat.moves for other in running):
        return problem(what, found, remedy)
    return _finding(beat, what, found, remedy)


def _finding(beat: Beat, what: str, found: str, remedy: str) -> Finding:
    """Of ranks that are all in one phase."""
    return (warning if _may_take_long(beat) else problem)(what, found, remedy)


def _may_take_long(beat: Beat) -> bool:
    """In the first step code is compiled and kernels are chosen."""
    return beat.phase in _LONG or beat.step <= 1


def _remedy_for_all(run_dir: Path, beat: Beat) -> str:
    if _may_take_long(beat):
        return "the file system; it may also just take long"
    dumps = run_dir / "flight"
    recorded = f"; the flight recorder's dumps: {dumps}" if dumps.is_dir() and any(dumps.iterdir()) else ""
    return (
        f"`py-spy dump --pid` on a rank; a collective's network, or a GPU that hangs (`nvidia-smi`, `dmesg`){recorded}"
    )


def _seconds_a_step(run_dir: Path) -> float:
    try:
        with open_regular(run_dir / "metrics.jsonl") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - MAX_LINE_BYTES))
            *_, last = file.read(MAX_LINE_BYTES).splitlines()
        return float(parse_object(last, "metrics.jsonl")["step_s"])
    except (OSError, JsonError, ValueError, KeyError, TypeError):
        return 0.0


def _ago(seconds: float) -> str:
    return f"{seconds:.0f} s ago"
