"""One checkpoint's folder: tensors, state.json, config.yaml, and MANIFEST.json over all of them. No torch here.

The tensors are DCP files (model and optimizer, what a run writes) or model.safetensors, in one
file or several with an index (what is exported).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mres.credentials import redacted
from mres.errors import UserError
from mres.io.files import file_sha256, fsync, write_durably
from mres.io.json_files import JsonError, read_json
from mres.io.yaml_files import read_text

FORMAT = "mres-checkpoint-1"
DCP_METADATA = ".metadata"  # the index of DCP's files
MANIFEST = "MANIFEST.json"
STATE = "state.json"
CONFIG = "config.yaml"
SAFETENSORS = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"  # of weights in several files


class CheckpointError(UserError):
    """A checkpoint that cannot be used or written; the message says which file and why."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A committed checkpoint that was verified."""

    folder: Path
    step: int
    state: dict[str, Any]

    @property
    def weights_only(self) -> bool:
        """No optimizer and no place in the data: a start for a new run, nothing to go on from."""
        return bool(self.state.get("weights_only", False))


def manifest_sha256(folder: Path) -> str | None:
    """Which checkpoint lies there: the hash of its MANIFEST.json, which has those of all its files; None without one."""
    manifest = folder / MANIFEST
    return file_sha256(manifest) if manifest.is_file() else None


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


def saved_config(path: Path) -> str:
    """The config.yaml beside weights, without the credentials that earlier versions let into it.

    Raises:
        OSError, YamlError: it cannot be read.
    """
    return redacted(read_text(path))


def read_manifest(folder: Path) -> tuple[int, dict[str, FileFacts]]:
    """Step and files of a checkpoint, as they were written.

    Raises:
        CheckpointError: there is no manifest, it cannot be read, or is of another version.
    """
    path = folder / MANIFEST
    try:
        manifest = read_json(path)
        found = manifest["format"]
        if found == FORMAT:
            step = manifest["step"]
            files = {str(name): FileFacts(entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
            numbers = [step, *(facts.bytes for facts in files.values())]
            if any(type(number) is not int or not 0 <= number < 2**63 for number in numbers):
                raise ValueError("a step or a size is no number")
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{folder} has no {MANIFEST}: it is no checkpoint, or one that was not finished"
        ) from None
    except (JsonError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: it is not what mres writes ({error})") from None
    if found != FORMAT:
        raise CheckpointError(
            f"{folder} has format {found!r}, this version of mres reads {FORMAT!r}; use the version that wrote it"
        )
    return step, files
