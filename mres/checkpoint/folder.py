"""One checkpoint's folder: tensors, state.json, config.yaml, and MANIFEST.json over all of them. No torch here.

The tensors are DCP files (model and optimizer, what a run writes) or model.safetensors, in one
file or several with an index (what is exported).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mres.checkpoint.dcp_index import DCP_METADATA, CheckpointError, check_index
from mres.files import file_sha256, fsync, write_durably

__all__ = [
    "CONFIG",
    "DCP_METADATA",
    "FORMAT",
    "MANIFEST",
    "SAFETENSORS",
    "SAFETENSORS_INDEX",
    "STATE",
    "Checkpoint",
    "CheckpointError",
    "FileFacts",
    "read_manifest",
    "seal",
    "verify",
]

FORMAT = "mres-checkpoint-1"
MANIFEST = "MANIFEST.json"
STATE = "state.json"
CONFIG = "config.yaml"
SAFETENSORS = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"  # of weights in several files
# Of a manifest: a hundred bytes a file, a file a rank.
_MAX_JSON_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A published checkpoint that was verified."""

    folder: Path
    step: int
    state: dict[str, Any]

    @property
    def weights_only(self) -> bool:
        """No optimizer and no place in the data: a start for a new run, nothing to go on from."""
        return bool(self.state.get("weights_only", False))


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What the manifest says of a file."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path, *, from_disk: bool = False) -> FileFacts:
        """Reads the file; `from_disk`, not from what memory still has of it."""
        return cls(path.stat().st_size, file_sha256(path, from_disk=from_disk))


def seal(
    folder: Path, step: int, state: dict[str, Any], config_yaml: str, written: Mapping[str, FileFacts] | None = None
) -> None:
    """Writes what belongs beside the tensors, the manifest last, and waits until all is on the disk.

    Args:
        written: facts of files that whoever wrote them has hashed and brought to the disk.
    """
    write_durably(folder / STATE, json.dumps(state, indent=1).encode())
    write_durably(folder / CONFIG, config_yaml.encode())
    facts = dict(written or {})
    for path in folder.iterdir():
        if path.name not in facts:
            fsync(path)
            facts[path.name] = FileFacts.of(path)
    files = {name: asdict(facts[name]) for name in sorted(facts)}
    write_durably(folder / MANIFEST, json.dumps({"format": FORMAT, "step": step, "files": files}, indent=1).encode())
    fsync(folder)


def verify(folder: Path) -> Checkpoint:
    """Checks every file's size and hash, and that the files agree with each other.

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
        check_index(folder / DCP_METADATA, {name: facts.bytes for name, facts in files.items()})
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


def read_manifest(folder: Path) -> tuple[int, dict[str, FileFacts]]:
    """Step and files of a checkpoint, as they were written.

    Raises:
        CheckpointError: there is no manifest, it cannot be read, or is of another version.
    """
    path = folder / MANIFEST
    try:
        manifest = _read_json(path)
        form = manifest["format"]
        if form == FORMAT:
            step = manifest["step"]
            files = {str(name): FileFacts(entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
            if type(step) is not int or step < 0 or any(type(facts.bytes) is not int for facts in files.values()):
                raise ValueError
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{folder} has no {MANIFEST}: it is no checkpoint, or one that was not finished"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{path} is damaged: it is not what mres writes") from None
    if form != FORMAT:
        raise CheckpointError(
            f"{folder} has format {form!r}, this version of mres reads {FORMAT!r}; use the version that wrote it"
        )
    return step, files


def _read_json(path: Path) -> Any:
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise ValueError
    return json.loads(path.read_text(encoding="utf-8"))


def _read_state(path: Path, step: int) -> dict[str, Any]:
    try:
        state = dict(_read_json(path))
        found = state["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(f"{path} is not what mres writes: no JSON object with a step") from None
    if found != step:
        raise CheckpointError(f"{path} is of step {found}, {MANIFEST} of step {step}: one of them is damaged")
    return state
