"""A run's folder: one launch at a time writes into it, and it keeps what the run was started with."""

import json
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
from mres.io.locks import locked

LOCK_NAME = "run.lock"
DS_CONFIG_NAME = "ds_config.json"


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
