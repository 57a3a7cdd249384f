"""Where a conversion may write: into nothing, or over what an earlier one made. No torch here."""

from __future__ import annotations

import re
from pathlib import Path

from mres.checkpoint.folder import MANIFEST, SAFETENSORS_INDEX, CheckpointError
from mres.checkpoint.store import published

# The files of a form alone, of weights that do not say whose they are.
_BARE = re.compile(rf"\.metadata|__\d+_\d+\.distcp|model(-\d+-of-\d+)?\.safetensors|{re.escape(SAFETENSORS_INDEX)}")


def check_target(out: Path, *, overwrite: bool) -> None:
    """Whether `out` may be made.

    Raises:
        CheckpointError: something is there that is not to be replaced.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
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
    bare = all(_BARE.fullmatch(path.name) for path in inside)
    return bare or (out / MANIFEST).is_file() or inside == published(out)[:1]


def check_apart(source: Path, out: Path) -> None:
    """Neither may lie in the other.

    Raises:
        CheckpointError: one does.
    """
    if source.is_relative_to(out) or out.is_relative_to(source):
        raise CheckpointError(
            f"'{out}' and what is to be converted, '{source}', lie inside each other; name another folder"
        )
