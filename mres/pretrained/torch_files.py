"""Tensors out of files of torch.save and torch.jit.save (OpenAI's CLIP is one), without running anything of them.

A TorchScript archive is a zip file: code, constants, `data.pkl` (the modules' attributes as a pickle) and `data/0`,
`data/1` … (the bytes of the tensors). The pickle is read with tensors as descriptions and modules as mere attributes; it
may name nothing else. The code is not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, is_zipfile

from mres.formats.folder import CheckpointError
from mres.formats.legacy_torch import LegacyArchive
from mres.formats.memory import Buffer, elements
from mres.formats.open_files import OpenFiles
from mres.formats.tensors import MODEL, Spec, TensorSource
from mres.formats.torch_archive import TorchArchive, open_zip, printable
from mres.formats.torch_pickle import StoredTensor, TorchUnpickler
from mres.io.unpickling import Inert

# Where training scripts put the weights (timm's and most others').
_NESTED = ("state_dict", "model_state_dict", "model", "module")
_MAX_DEPTH = 64
_MAX_TENSORS = 1 << 20
_MAX_NAME = 1 << 12
# What training scripts put beside the weights; of these objects, nothing is needed.
_BESIDE = (
    "argparse.Namespace", "collections.defaultdict", "numpy.dtype", "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"numpy.{kind}" for kind in ("float64", "float32", "float16", "int64", "int32", "bool_")),
    *(f"numpy.dtypes.{kind}DType" for kind in ("Float64", "Float32", "Float16", "Int64", "Int32", "Bool")),
)  # fmt: skip


class _Module(Inert):
    """A module's attributes; its class and its methods are code, and stay where they are."""

    __slots__ = ("attributes",)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _ScriptUnpickler(TorchUnpickler):
    """Lets through what TorchScript itself writes, each as something that cannot run."""

    def named(self, full: str) -> Any:
        if full.startswith("__torch__."):
            return _Module
        if full.startswith("torch.jit._pickle."):
            return Inert  # lists of numbers and the like: settings of the code
        return super().named(full)


class TorchTensors(TensorSource):
    """What torch wrote: a state_dict, what has one, or the modules of a TorchScript archive.

    Attributes:
        format: what the file is, in words.
        others: names of what else is in it.

    Raises:
        CheckpointError: damaged, or its pickle wants something else than tensors and modules.
    """

    aliases: Mapping[str, str] = {}

    def __init__(self, path: Path) -> None:
        self._buffer, self.format = Buffer(), "torch.save"
        unpickler = partial(TorchUnpickler, inert=_BESIDE)
        try:
            if not is_zipfile(path):
                self._archive: TorchArchive = LegacyArchive(OpenFiles(), path, unpickler=unpickler)
            elif _is_torchscript(path):
                self.format = "TorchScript archive"
                self._archive = TorchArchive(OpenFiles(), path, unpickler=_ScriptUnpickler)
            else:
                self._archive = TorchArchive(OpenFiles(), path, unpickler=unpickler)
        except (CheckpointError, BadZipFile, OSError) as error:
            raise CheckpointError(
                f"'{path}' cannot be read as tensors only ({error}); a .safetensors file, or the state_dict alone as "
                "torch.save writes it, can be"
            ) from None
        found, self.others = _named(self._archive.structure)
        if len(found) > _MAX_TENSORS or any(len(name) > _MAX_NAME for name in found):
            raise CheckpointError(
                f"'{path}' is refused: it has more than {_MAX_TENSORS:,} tensors, or names of more than {_MAX_NAME:,} letters"
            )
        self._tensors = {MODEL + name: tensor for name, tensor in found.items()}
        self.specs = {name: Spec(tensor.shape, tensor.dtype) for name, tensor in self._tensors.items()}

    def read_into(self, name: str, target: memoryview) -> None:
        stored = self._tensors[name]
        self._archive.read_box(stored, elements(target, stored.dtype, stored.shape), self._buffer)


def _is_torchscript(path: Path) -> bool:
    """What torch.save writes has no constants.pkl."""
    try:
        with path.open("rb") as file, open_zip(file) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except OSError:
        raise
    except Exception as error:  # a zip can fail in any way
        raise CheckpointError(
            f"the list of its files is damaged: {printable(str(error) or type(error).__name__)}"
        ) from None


def _named(structure: Any) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    """The tensors by the names that the library's state_dict has, and the names of what else there is."""
    if isinstance(structure, _Module):
        return dict(_of_module("", structure, set())), ()
    saved = structure if isinstance(structure, dict) else {}
    inside = next((key for key in _NESTED if _tensors_of(saved.get(key))), None)
    found = _tensors_of(saved if inside is None else saved[inside]) or dict(islice(_of_all(saved), _MAX_TENSORS + 1))
    used = {inside, *(name.split(".")[0] for name in found), *found}
    return found, tuple(printable(name) for name in saved if isinstance(name, str) and name not in used)


def _tensors_of(value: Any) -> dict[str, StoredTensor]:
    if not isinstance(value, dict):
        return {}
    return {n: tensor for n, tensor in value.items() if isinstance(n, str) and isinstance(tensor, StoredTensor)}


def _of_all(saved: dict[Any, Any]) -> Iterator[tuple[str, StoredTensor]]:
    """Tensors in dictionaries within dictionaries (teacher's, student's …), each dictionary once."""
    unread, seen = [("", saved)], {id(saved)}
    while unread:
        prefix, inside = unread.pop()
        for name, value in inside.items():
            if not isinstance(name, str) or len(prefix) + len(name) > _MAX_NAME:
                continue
            if isinstance(value, StoredTensor):
                yield prefix + name, value
            elif isinstance(value, dict) and id(value) not in seen:
                seen.add(id(value))
                unread.append((f"{prefix}{name}.", value))


def _of_module(prefix: str, module: _Module, seen: set[int]) -> Iterator[tuple[str, StoredTensor]]:
    if id(module) in seen or prefix.count(".") > _MAX_DEPTH or len(prefix) > _MAX_NAME:
        return
    seen.add(id(module))
    for name, attribute in module.attributes.items():
        if isinstance(attribute, StoredTensor):
            yield f"{prefix}{name}", attribute
        elif isinstance(attribute, _Module):
            yield from _of_module(f"{prefix}{name}.", attribute, seen)
