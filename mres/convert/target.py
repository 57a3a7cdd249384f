"""Where a conversion may write: into nothing, or over what an earlier one made. No torch here."""

from __future__ import annotations

import re
from pathlib import Path

from mres.checkpoint.store import committed
from mres.convert.formats import FORMATS
from mres.formats.folder import MANIFEST, CheckpointError
from mres.io.local import check_local
from mres.io.staged import sweep

# What may lie in a folder that no manifest covers: weights that do not say whose they are, or DeepSpeed's checkpoints.
_FILES = re.compile("|".join(format_.files for format_ in FORMATS.values()))
_MARKS = {mark for format_ in FORMATS.values() for mark in format_.marks}


def check_target(out: Path, *, overwrite: bool) -> None:
    """Whether `out` may be made.

    Raises:
        UserError: a URL, or something is there that is not to be replaced.
    """
    check_local(out)
    if out.is_symlink() and not out.exists():
        raise CheckpointError(
            f"'{out}' is a link to '{out.readlink()}', which is not there; remove it, or make the folder"
        )
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    sweep(out.absolute())
    if not overwrite:
        raise CheckpointError(f"'{out}' exists and is not empty; name another folder, or --overwrite to replace it")
    if not _is_outcome(out):
        raise CheckpointError(
            f"'{out}' is not what a conversion makes, so --overwrite does not remove it; name another"
        )


def _is_outcome(out: Path) -> bool:
    """A checkpoint, or a folder of just one."""
    if not out.is_dir():
        return False
    inside = list(out.iterdir())
    names = {path.name for path in inside}
    bare = all(map(_FILES.fullmatch, names)) and bool(names & _MARKS)
    return bare or (out / MANIFEST).is_file() or inside == committed(out)[:1]


def check_apart(source: Path, out: Path) -> None:
    """Neither may lie in the other.

    Raises:
        CheckpointError: one does.
    """
    if source.is_relative_to(out) or out.is_relative_to(source):
        raise CheckpointError(f"'{out}' and what it is made of, '{source}', lie inside each other; name another folder")
