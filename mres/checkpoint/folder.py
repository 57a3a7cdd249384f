"""One checkpoint's folder: tensors, state.json, config.yaml, and MANIFEST.json over all of them. No torch here.

The tensors are DCP files (model and optimizer, what a run writes) or one model.safetensors (what is exported).
"""

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from mres.errors import UserError
from mres.files import file_sha256, fsync

FORMAT = "mres-checkpoint-1"
MANIFEST = "MANIFEST.json"
STATE = "state.json"
CONFIG = "config.yaml"
SAFETENSORS = "model.safetensors"
DCP_METADATA = ".metadata"


class CheckpointError(UserError):
    """A checkpoint that cannot be used; the message says which file and why."""


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


def seal(folder: Path, step: int, state: dict[str, Any], config_yaml: str) -> None:
    """Writes what belongs beside the tensors, the manifest last, and waits until all is on the disk."""
    (folder / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
    (folder / CONFIG).write_text(config_yaml, encoding="utf-8")
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in sorted(folder.iterdir())
    }
    manifest = {"format": FORMAT, "step": step, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in [*folder.iterdir(), folder]:
        fsync(path)


def verify(folder: Path) -> Checkpoint:
    """Checks every file's size and hash, and that the files agree with each other.

    Raises:
        CheckpointError: naming the file that is missing or damaged.
    """
    step, files = _read_manifest(folder)
    for name, (size, sha256) in files.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise CheckpointError(f"{path} is missing")
        if path.stat().st_size != size or file_sha256(path) != sha256:
            raise CheckpointError(f"{path} is damaged (size or hash differ from {MANIFEST})")
    tensors = SAFETENSORS if SAFETENSORS in files else DCP_METADATA
    for name in (STATE, CONFIG, tensors):
        if name not in files:
            raise CheckpointError(f"{folder / MANIFEST} is damaged: it does not list {name}")
    if tensors == DCP_METADATA:
        _refuse_code(folder / DCP_METADATA)
    return Checkpoint(folder, step, _read_state(folder / STATE, step))


def _read_manifest(folder: Path) -> tuple[int, dict[str, tuple[int, str]]]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        form, step = manifest["format"], int(manifest["step"])
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{folder} has no {MANIFEST}: it is no checkpoint, or one that was not finished"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{path} is damaged") from None
    if form != FORMAT:
        raise CheckpointError(f"{folder} has format {form!r}, this version of mres reads {FORMAT!r}")
    return step, files


def _read_state(path: Path, step: int) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        agreed = state["step"] == step
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path} is not what mres writes: no JSON object with a step") from None
    if not agreed:
        raise CheckpointError(f"{path} is of step {state['step']}, {MANIFEST} of step {step}: one of them is damaged")
    return dict(state)


# All that the metadata of tensors consists of. Anything else in it could run when PyTorch unpickles it.
_METADATA_NAMES = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata",
        "MetadataIndex",
        "TensorStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "float64", "float32", "bfloat16", "float16", "int64", "int32", "uint8", "bool"},
    "pathlib": {"PosixPath"},
    "pathlib._local": {"PosixPath"},
}


class _Inert:
    """Stands for anything that is allowed, and does nothing."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


class _NamesOnly(pickle.Unpickler):
    """Goes through a pickle without importing or calling anything that it names."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if name not in _METADATA_NAMES.get(module, ()):
            _refuse(f"{module}.{name}")
        return _Inert


def _refuse(name: str) -> NoReturn:
    raise CheckpointError(f"it names {name}, which no checkpoint of mres contains and which may run code")


def _refuse_code(path: Path) -> None:
    """DCP's own index of tensors is a pickle, which the strategies load: nothing in it may be able to run.

    Raises:
        CheckpointError: it names something else than metadata of tensors, or is no pickle.
    """
    try:
        with path.open("rb") as file:
            _NamesOnly(file).load()
    except CheckpointError as error:
        raise CheckpointError(f"{path} is refused: {error}") from None
    except Exception as error:  # a pickle can fail in any way
        raise CheckpointError(f"{path} is damaged: {error}") from None
