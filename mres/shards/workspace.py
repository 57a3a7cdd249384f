"""The folder `<out>.incomplete` in which a shard set is made, and which one rename makes `out`."""

import errno
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from mres.errors import UserError
from mres.io.files import commit_folder, fsync
from mres.io.locks import locked
from mres.shards.manifest import is_shard_set

# A finished piece of the work. Whoever is killed while such are there goes on from them.
PIECES = "piece-*.json"
PLAN_NAME = "build.json"
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def check_free(out: Path, *, overwrite: bool) -> None:
    """Refuses to replace what is no shard set, and anything without `overwrite`."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise UserError(f"'{out}' exists and is not empty; give another folder, or --overwrite to replace it")
    if not is_shard_set(out):
        raise UserError(f"'{out}' is not a shard set, so --overwrite does not remove it; give another folder")


@contextmanager
def published(out: Path, plan: Mapping[str, Any], *, overwrite: bool) -> Iterator[Path]:
    """The folder `<out>.incomplete` to fill, which becomes `out` at the end.

    What an interrupted work of the same plan has left is in it; what another one has left is removed. When the body
    raises, it stays if a finished piece is in it, and vanishes otherwise.

    Raises:
        UserError: `out` is in use, somebody else is at work in the folder, the disk is full or fails.
    """
    out = out.resolve()
    check_free(out, overwrite=overwrite)
    folder = out.with_name(out.name + ".incomplete")
    try:
        with _taken_up(folder, plan, out), _left_tidy(folder):
            yield folder
            for path in [*folder.iterdir(), folder]:
                fsync(path)
            (folder / PLAN_NAME).unlink()
            commit_folder(folder, out)
    except OSError as error:
        remedy = "; make room on the disk" if error.errno in _NO_ROOM else ""
        raise UserError(
            f"writing '{out}' failed: {error.strerror or error} ({error.filename or folder}){remedy}"
        ) from None


@contextmanager
def _taken_up(folder: Path, plan: Mapping[str, Any], out: Path) -> Iterator[None]:
    """Holds the folder for this process alone; in it is what an interrupted work of the same plan has left."""
    signed = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
    path = folder / PLAN_NAME
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(path, wait=False))
        except BlockingIOError:
            raise UserError(
                f"another process is making '{out}' (in '{folder}'); wait for it, end it, or give another folder"
            ) from None
        except OSError:  # a file system without locks
            folder.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8", errors="replace") != signed:
            for stranger in set(folder.iterdir()) - {path}:
                remove(stranger)
            path.write_text(signed, encoding="utf-8")
        yield


def remove(path: Path) -> None:
    """Removes a file, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextmanager
def _left_tidy(folder: Path) -> Iterator[None]:
    """When the body raises, the folder vanishes, unless there is something to go on from."""
    try:
        yield
    except BaseException:
        if any(folder.glob(PIECES)):
            print(f"note: finished shards are kept in '{folder}'; the same command goes on from them", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
        raise
