"""A run's folder: one launch at a time writes into it; what the run was started with, and its lines for people and programs."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from mres.config import Config
from mres.errors import UserError
from mres.io.json_files import read_jsonl
from mres.io.locks import locked

LOCK_NAME = "run.lock"
DS_CONFIG_NAME = "ds_config.json"
METRICS, EVALUATIONS, BATCHES = "metrics.jsonl", "evaluations.jsonl", "batches.jsonl"
BAD_STEPS, ROLLBACKS, QUARANTINE = "bad_steps.jsonl", "rollbacks.jsonl", "quarantine.jsonl"


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
    (run_dir / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    (run_dir / "environment.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    copy = run_dir / DS_CONFIG_NAME
    if config.parallel.ds_config is None:
        copy.unlink(missing_ok=True)  # of a launch before this one
    elif not (copy.exists() and copy.samefile(config.parallel.ds_config)):
        shutil.copyfile(config.parallel.ds_config, copy)


def _sign(descriptor: int) -> None:
    """Says who holds the lock, for those who do not get it."""
    me = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(me).encode(), 0)


def _holder(path: Path) -> str:
    try:
        return "host {host}, pid {pid}, since {since}".format(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError, TypeError):  # it has the lock, and has not signed yet
        return "which has just begun"


class RunLog:
    """Rank 0's voice; on other ranks every method does nothing."""

    def __init__(self, run_dir: Path, *, enabled: bool) -> None:
        self._dir, self.enabled = run_dir, enabled

    def say(self, text: str) -> None:
        if self.enabled:
            print(text, flush=True)

    def append(self, name: str, line: Mapping[str, Any]) -> None:
        """One JSON line, which has a `step`, into a file of the run's folder."""
        if self.enabled:
            with (self._dir / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(_json_value(line), allow_nan=False) + "\n")

    def rewind(self, step: int) -> None:
        """For a run that goes on after `step` steps: what was written of later ones, by a dead run mostly, is taken back."""
        if self.enabled:
            for name in (METRICS, EVALUATIONS, BATCHES, BAD_STEPS, ROLLBACKS, QUARANTINE):
                rewind(self._dir / name, step)


def rewind(path: Path, step: int) -> None:
    """Drops the lines of a JSONL file that belong to steps after `step`, and a last line that was cut off."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file of the run, none where there is no file."""
    return [value for _, value in read_jsonl(path)] if path.exists() else []


def _json_value(value: Any) -> Any:
    """JSON knows no NaN and no infinity: null stands for them; readers other than Python's would refuse the line."""
    if isinstance(value, Mapping):
        return {key: _json_value(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
