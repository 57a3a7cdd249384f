"""Tensors out of a TorchScript archive (OpenAI's CLIP is one), without running anything of it.

The archive is a zip file: code, constants, `data.pkl` (the modules' attributes as a pickle) and `data/0`, `data/1` …
(the bytes of the tensors). The pickle is read with tensors as descriptions and modules as mere attributes; it may name
nothing else. The code is not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mres.checkpoint.folder import CheckpointError
from mres.checkpoint.weights import memory_of
from mres.formats.inert_pickle import Inert
from mres.formats.memory import Buffer, elements
from mres.formats.open_files import OpenFiles
from mres.formats.torch_archive import TorchArchive
from mres.formats.torch_pickle import StoredTensor, TorchUnpickler

_MAX_DEPTH = 64


class _Module(Inert):
    """A module's attributes; its class and its methods are code, and stay where they are."""

    __slots__ = ("attributes",)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _Unpickler(TorchUnpickler):
    """Lets through what TorchScript itself writes, each as something that cannot run."""

    def named(self, full: str) -> Any:
        if full.startswith("__torch__."):
            return _Module
        if full.startswith("torch.jit._pickle."):
            return Inert  # lists of numbers and the like: settings of the code
        return super().named(full)


class TorchScriptArchive:
    """The tensors of the archive's modules, by the names that the library's state_dict has.

    Raises:
        CheckpointError: damaged, or its pickle wants something else than modules and tensors.
    """

    form = "TorchScript archive"
    others: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        self._path, self._buffer = path, Buffer()
        try:
            self._archive = TorchArchive(OpenFiles(), path, read=lambda content: _Unpickler(content).load())
        except (ValueError, OSError) as error:
            raise self._damaged(error) from None
        self._tensors = dict(_tensors("", self._archive.structure, set()))
        self.shapes = {name: torch.Size(tensor.shape) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        """One tensor, its elements in their order. Raises: CheckpointError: its bytes are damaged or not there."""
        stored = self._tensors[name]
        tensor = torch.empty(stored.shape, dtype=getattr(torch, stored.dtype))
        try:
            self._archive.check(stored, self._buffer)
            if stored.numel:
                box = elements(memory_of(tensor), stored.dtype, stored.shape)
                self._archive.read_box(stored, box, self._buffer)
        except (ValueError, OSError) as error:
            raise self._damaged(error) from None
        return tensor

    def _damaged(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"'{self._path}' cannot be read as a TorchScript archive of tensors only: {error}")


def is_torchscript(names: list[str]) -> bool:
    """Of the names in a zip file; what torch.save writes has no constants.pkl."""
    return any(name.endswith("/constants.pkl") for name in names) and any(name.endswith("/data.pkl") for name in names)


def _tensors(prefix: str, value: Any, seen: set[int]) -> Iterator[tuple[str, StoredTensor]]:
    if not isinstance(value, _Module) or id(value) in seen or prefix.count(".") > _MAX_DEPTH:
        return
    seen.add(id(value))
    for name, attribute in value.attributes.items():
        if isinstance(attribute, StoredTensor):
            yield f"{prefix}{name}", attribute
        else:
            yield from _tensors(f"{prefix}{name}.", attribute, seen)
