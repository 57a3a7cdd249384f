"""Whether a checkpoint is what was written, and nothing else: read before anything of it is used. No torch here."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mres.formats.dcp import DcpSource
from mres.formats.folder import (
    CONFIG,
    DCP_METADATA,
    MANIFEST,
    SAFETENSORS,
    SAFETENSORS_INDEX,
    STATE,
    Checkpoint,
    CheckpointError,
    FileFacts,
    read_manifest,
)
from mres.formats.state_file import read_state
from mres.io.files import file_sha256


def verify(folder: Path) -> Checkpoint:
    """Checks every file's size and hash, that the files agree with each other, and that none could run code.

    Raises:
        CheckpointError: naming the file that is missing or damaged.
    """
    step, files = read_manifest(folder)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # hashing lets go of the interpreter
        for problem in pool.map(lambda name: _problem_of(folder, name, files[name]), files):
            if problem:
                raise CheckpointError(problem)
    tensors = next((name for name in (SAFETENSORS, SAFETENSORS_INDEX) if name in files), DCP_METADATA)
    for name in (STATE, CONFIG, tensors):
        if name not in files:
            raise CheckpointError(f"{folder / MANIFEST} is damaged: it does not list {name}")
    if tensors == DCP_METADATA:
        DcpSource(folder, sizes={name: facts.bytes for name, facts in files.items()}).check_items()
    return Checkpoint(folder, step, _read_state(folder / STATE, step))


def _problem_of(folder: Path, name: str, facts: FileFacts) -> str:
    """What is wrong with a file, or ""."""
    path = folder / name
    try:
        if not _is_inside(path, folder):
            return f"{folder / MANIFEST} is refused: it names {name!r}, which is not in the checkpoint's folder"
        if not path.is_file():
            return f"{path} is {'no file' if path.exists() else 'missing'}"
        size = path.stat().st_size
        if size != facts.bytes:
            return f"{path} is damaged: it has {size:,} bytes, {MANIFEST} says {facts.bytes:,}"
        if file_sha256(path) != facts.sha256:
            return f"{path} is damaged: its content is not what {MANIFEST} says (SHA-256)"
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    return ""


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether it is a name in the folder, and no link that leads out of it."""
    try:
        return path.parent == folder and path.name != ".." and path.resolve().parent == folder.resolve()
    except (ValueError, RuntimeError):  # a name with NUL in it, links in a circle
        return False


def _read_state(path: Path, step: int) -> dict[str, Any]:
    state = read_state(path)
    if state["step"] != step:
        raise CheckpointError(f"{path} is of step {state['step']}, {MANIFEST} of step {step}: one of them is damaged")
    return state
