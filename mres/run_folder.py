"""A run's folder: one launch at a time writes into it; what the run was started with, and its lines for people and programs."""

from __future__ import annotations

import json
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from mres.config import Config
from mres.errors import UserError
from mres.io.append_log import AppendLog
from mres.io.files import open_regular, read_regular, write_atomically
from mres.io.json_files import MAX_BYTES, JsonError, parse_object, read_jsonl
from mres.io.locks import locked

LOCK_NAME = "run.lock"
_MAX_SIGNATURE = 1 << 12  # bytes
DS_CONFIG_NAME = "ds_config.json"
METRICS, EVALUATIONS, BATCHES = "metrics.jsonl", "evaluations.jsonl", "batches.jsonl"
BAD_STEPS, ROLLBACKS, QUARANTINE = "bad_steps.jsonl", "rollbacks.jsonl", "quarantine.jsonl"

_TAIL_BYTES = 1 << 20  # of the metrics: days of steps


@contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """Keeps the folder to this process, which is a launch's rank 0; the kernel lets go of it when the process dies.

    A folder that cannot be made is not refused here: all ranks learn of that together, once they have joined.

    Raises:
        UserError: another launch holds it; names its host and process.
    """
    with ExitStack() as stack:
        try:
            descriptor = stack.enter_context(locked(run_dir / LOCK_NAME, wait=False))
            _sign(descriptor)
        except BlockingIOError:
            raise UserError(
                f"the run's folder '{run_dir}' is in use by another launch, {_holder(run_dir / LOCK_NAME)}; wait for it, "
                "stop it, or give this run another name (run.name=…)"
            ) from None
        except OSError as error:
            if run_dir.is_dir():
                print(
                    f"warning: '{run_dir}' cannot be locked ({error.strerror}): start one launch at a time",
                    file=sys.stderr,
                )
        yield


def write_start(config: Config, facts: Mapping[str, Any]) -> None:
    """Writes config.yaml, environment.json (`facts`) and a copy of the file that `parallel.ds_config` names.

    Raises:
        OSError: the folder cannot be written.
    """
    run_dir = config.run_dir
    run_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(run_dir / "config.yaml", config.to_yaml().encode())
    write_atomically(run_dir / "environment.json", json.dumps(facts, indent=1).encode())
    copy = run_dir / DS_CONFIG_NAME
    if config.parallel.ds_config is None:
        copy.unlink(missing_ok=True)  # of a launch before this one
    elif not (copy.exists() and copy.samefile(config.parallel.ds_config)):
        write_atomically(copy, read_regular(Path(config.parallel.ds_config), MAX_BYTES))


def _sign(descriptor: int) -> None:
    """Says who holds the lock, for those who do not get it."""
    me = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    with suppress(OSError):  # a full disk: it holds without
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(me).encode(), 0)


def _holder(path: Path) -> str:
    try:
        signed = parse_object(read_regular(path, _MAX_SIGNATURE), str(path))
        return "host {host}, pid {pid}, since {since}".format(**signed)
    except (OSError, JsonError, LookupError):  # it has the lock, and has not signed yet
        return "which has just begun"


class RunLog:
    """Rank 0's voice; on other ranks every method does nothing.

    Args:
        patient: a disk that takes no lines does not end the run (`checkpoint.on_failure=continue`): they wait.
    """

    def __init__(self, run_dir: Path, *, enabled: bool, patient: bool = False) -> None:
        self._dir, self.enabled, self._patient = run_dir, enabled, patient
        self._logs: dict[str, AppendLog] = {}

    def say(self, text: str) -> None:
        if self.enabled:
            print(text, flush=True)

    def log(self, name: str, *, separator: bytes = b"") -> AppendLog:
        """A file of the run's folder that grows, as patient as the run is."""
        if name not in self._logs:
            self._logs[name] = AppendLog(self._dir / name, self.say, separator=separator, patient=self._patient)
        return self._logs[name]

    def append(self, name: str, line: Mapping[str, Any]) -> None:
        """One JSON line, which has a `step`, into a file of the run's folder.

        Raises:
            OSError: the disk does not take it, and this log is not patient.
        """
        if self.enabled:
            self.log(name, separator=b"\n").add(json.dumps(_json_value(line), allow_nan=False).encode() + b"\n")

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Those of a file, and those that wait."""
        waiting = self._logs[name].waiting if name in self._logs else ()
        return [*read_lines(self._dir / name), *map(json.loads, waiting)]

    def has(self, name: str, step: int) -> bool:
        """Whether a file of the run's folder has a line of that step."""
        path = self._dir / name
        return self.enabled and path.exists() and step in map(_step_of, _log_bytes(path).splitlines())

    def rewind(self, step: int) -> None:
        """For a run that goes on after `step` steps: what was written of later ones, by a dead run mostly, is taken back."""
        if self.enabled:
            for name in (METRICS, EVALUATIONS, BATCHES, BAD_STEPS, ROLLBACKS, QUARANTINE):
                rewind(self._dir / name, step, self.say)
                if name in self._logs:
                    self._logs[name].forget(lambda line: json.loads(line)["step"] <= step)

    def close(self) -> None:
        """Tries a last time what waits for room on the disk."""
        for log in self._logs.values():
            log.flush(last=True)


def rewind(path: Path, step: int, say: Callable[[str], None]) -> None:
    """Drops the lines of a JSONL file that belong to steps after `step`, and those that are none, which it says."""
    if not path.exists():
        return
    before = _log_bytes(path)
    lines = before.splitlines()
    steps = [_step_of(line) for line in lines]
    if broken := steps.count(None):
        say(f"warning: '{path}': {broken} line(s) that were cut off or have no step are left out")
    kept = b"".join(line + b"\n" for line, its in zip(lines, steps, strict=True) if its is not None and its <= step)
    if kept != before:
        write_atomically(path, kept)


def _log_bytes(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read()


def _step_of(line: bytes) -> int | None:
    """None of a line that is cut off, or of no step."""
    try:
        step = parse_object(line, "a line").get("step")
    except JsonError:
        return None
    return step if type(step) is int else None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file of the run, none where there is no file; a last one that was cut off is left out."""
    return [value for _, value in read_jsonl(path, may_be_cut=True)] if path.exists() else []


def last_lines(path: Path) -> list[dict[str, Any]]:
    """Those at the end of a JSONL file of the run, which may be long; none where it cannot be read."""
    with suppress(OSError), open_regular(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
        lines = []
        for line in file.read().splitlines():
            with suppress(JsonError):  # the first one and the last may be cut off
                lines.append(parse_object(line, "a line"))
        return lines
    return []


def _json_value(value: Any) -> Any:
    """JSON knows no NaN and no infinity: null stands for them; readers other than Python's would refuse the line."""
    if isinstance(value, Mapping):
        return {key: _json_value(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
