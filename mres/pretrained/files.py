"""Files of named tensors, whichever library wrote them; what a file is, its contents say and not its name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from torch import Tensor

from mres.checkpoint.folder import CheckpointError
from mres.pretrained.torchscript import TorchScriptArchive, is_torchscript

# Where training scripts put the weights (timm's and most others').
_NESTED = ("state_dict", "model_state_dict", "model", "module")
_INDEX = ".safetensors.index.json"


class TensorFile(Protocol):
    """Named tensors: shapes before they are read, one at a time.

    Attributes:
        form: what the file is, in words.
        others: names of what else is in it.
    """

    form: str
    shapes: dict[str, torch.Size]
    others: tuple[str, ...]

    def read(self, name: str) -> Tensor:
        """One tensor, as it was stored."""
        ...


def open_tensors(path: Path) -> TensorFile:
    """A file of safetensors, torch.save or torch.jit.save, or a folder of safetensors (sharded or not).

    Raises:
        CheckpointError: not there, none of these, or damaged.
    """
    if path.is_dir():
        return _Safetensors(_files_of(path), path)
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise CheckpointError(f"no such file: '{path}'") from None
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror}") from None
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"'{path}' is a pointer of Git LFS, not the weights themselves: fetch it with `git lfs pull`"
        )
    if head[8:9] == b"{":  # after the length of the header, which is JSON
        return _Safetensors([path], path)
    if is_zipfile(path) and is_torchscript(_names_in_zip(path)):
        return TorchScriptArchive(path)
    return _Pickled(path)


def _names_in_zip(path: Path) -> list[str]:
    try:
        with ZipFile(path) as file:
            return file.namelist()
    except (BadZipFile, OSError) as error:
        raise CheckpointError(f"'{path}' cannot be read: {error}") from None


def _files_of(folder: Path) -> list[Path]:
    """The shards that the folder's index names, or its only .safetensors file."""
    indices = sorted(folder.glob(f"*{_INDEX}"))
    if len(indices) == 1:
        return _shards(indices[0])
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1 or indices:
        found = ", ".join(file.name for file in [*indices, *files][:4]) or "none"
        raise CheckpointError(
            f"'{folder}' must hold one .safetensors file, or one *{_INDEX} beside its shards (found: {found}); "
            "name the file that you mean"
        )
    return files


def _shards(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise CheckpointError(f"'{index}' is not an index of shards: no 'weight_map' of file names in it") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"'{index}' names the shard {name!r}, which is not a file beside it")
    return [index.parent / name for name in sorted(names)]


class _Safetensors:
    others: tuple[str, ...] = ()

    def __init__(self, files: list[Path], path: Path) -> None:
        self.form = "safetensors" if len(files) == 1 else f"safetensors in {len(files)} shards"
        self._file_of: dict[str, Any] = {}
        self.shapes: dict[str, torch.Size] = {}
        for file in map(_open_safetensors, files):
            for name in file.keys():  # noqa: SIM118
                if name in self.shapes:
                    raise CheckpointError(f"'{path}' has the tensor '{name}' in two shards")
                self._file_of[name] = file
                self.shapes[name] = torch.Size(file.get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        tensor: Tensor = self._file_of[name].get_tensor(name)
        return tensor


def _open_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise CheckpointError(f"no such file: '{path}', which an index of shards names") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"'{path}' is not a safetensors file that can be read: {error}") from None


class _Pickled:
    """What torch.save wrote, a state_dict or what has one: tensors only, and nothing in it can run."""

    form = "torch.save"

    def __init__(self, path: Path) -> None:
        try:
            saved = _unpickled(path)
        except Exception as error:  # torch raises a dozen types for files that are not its own
            raise CheckpointError(
                f"'{path}' cannot be read as tensors only ({str(error).splitlines()[0]}); a .safetensors file, or the "
                "state_dict alone as torch.save writes it, can be"
            ) from None
        saved = saved if isinstance(saved, dict) else {}
        inside = next((key for key in _NESTED if _holds_tensors(saved.get(key))), None)
        state = saved if inside is None else saved[inside]
        self._tensors: dict[str, Tensor] = {name: value for name, value in state.items() if _is_named(name, value)}
        self.others = tuple(str(name) for name in saved if name != inside and name not in self._tensors)
        self.shapes = {name: value.shape for name, value in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        return self._tensors[name]


def _unpickled(path: Path) -> Any:
    if is_zipfile(path) and path.suffix != ".safetensors":  # for torch, that name decides what the file is
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # read when they are used
    with path.open("rb") as file:
        return torch.load(file, map_location="cpu", weights_only=True)


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(item, Tensor) for item in value.values())


def _is_named(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)
