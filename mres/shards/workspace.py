"""The folder in which a shard set is made, and which one rename makes `out`."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mres.errors import UserError, about_os
from mres.io.files import fsync, named
from mres.io.local import check_local
from mres.io.staged import staged, sweep
from mres.shards.manifest import is_shard_set

# A finished piece of the work. Whoever is killed while such are there goes on from them.
PIECES = "piece-*.json"


def check_free(out: Path, *, overwrite: bool) -> None:
    """Refuses a URL, to replace what is no shard set, and anything without `overwrite`."""
    check_local(out)
    out = out.resolve()
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    sweep(out)
    if not overwrite:
        raise UserError(
            f"'{out}' exists and is not empty; give another folder, or --overwrite to replace it (in Python overwrite=True)"
        )
    if not is_shard_set(out):
        raise UserError(f"'{out}' is not a shard set, so --overwrite does not remove it; give another folder")


@contextmanager
def committed(out: Path, plan: Mapping[str, Any], *, overwrite: bool) -> Iterator[Path]:
    """A folder to fill, which becomes `out` at the end.

    What an interrupted work of the same plan has left is in it. When the body raises, that stays if a finished piece is
    in it, and vanishes otherwise.

    Raises:
        UserError: `out` is in use, somebody else is at work in the folder, the disk is full or fails.
    """
    check_free(out, overwrite=overwrite)
    out = out.resolve()
    try:
        with staged(out, json.dumps(plan, sort_keys=True), keep=lambda result, _: any(result.glob(PIECES))) as stage:
            check_free(out, overwrite=overwrite)  # another build may have made it since
            with named(stage.result):
                yield stage.result
            for path in [*stage.result.iterdir(), stage.result]:
                fsync(path)
            stage.commit()
    except OSError as error:
        raise UserError(f"writing '{out}' failed: {about_os(error)}") from None
