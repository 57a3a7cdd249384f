"""The format of exported weights: one .safetensors file, or several with model.safetensors.index.json, under plain names."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mres.formats.folder import SAFETENSORS, SAFETENSORS_INDEX, CheckpointError
from mres.formats.memory import Reader, read_at
from mres.formats.open_files import OpenFiles
from mres.formats.tensors import ITEM_BYTES, MODEL, Progress, Spec, TensorSource, split_by_bytes
from mres.formats.workspace import HashedFile, Workspace
from mres.io.files import open_regular
from mres.io.json_files import JsonError, parse_object, read_json

_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "C64": "complex64",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_HEADER_MAX_BYTES = 1 << 25
INDEX_SUFFIX = ".safetensors.index.json"


class SafetensorsSource(TensorSource):
    """The tensors of a .safetensors file, of a folder's model.safetensors, or of the files that its index names.

    Attributes:
        header: the text in the file, or in the first of them. Whoever ties tensors (safetensors.torch.save_model) names
            there, under the name of each one that is left out, the one that holds it.

    Raises:
        CheckpointError: no such file, or not one of safetensors, or the index does not fit.
    """

    def __init__(self, path: Path) -> None:
        files = files_of(path)
        self.num_files = len(files)
        self._places: dict[str, tuple[Path, int]] = {}
        self._open_files = OpenFiles()
        self.specs: dict[str, Spec] = {}
        self.header: dict[str, str] = {}
        for file, expected in files.items():
            header = self._open(file, expected)
            self.header = {**header, **self.header}
            missing = sorted(set(expected or ()) - {name.removeprefix(MODEL) for name in self.specs})
            if missing:
                raise CheckpointError(f"'{file}' lacks {missing[0]}, which {SAFETENSORS_INDEX} says is in it")
        self.aliases = {
            MODEL + alias: MODEL + name
            for alias, name in self.header.items()
            if MODEL + name in self.specs and MODEL + alias not in self.specs
        }

    def _open(self, path: Path, expected: Sequence[str] | None) -> dict[str, str]:
        from safetensors import SafetensorError, safe_open

        try:
            with open_regular(path) as file:
                if (length := int.from_bytes(file.read(8), "little")) > _HEADER_MAX_BYTES:
                    raise ValueError(f"its header would have {length:,} bytes; at most {_HEADER_MAX_BYTES:,} are read")
                header = parse_object(file.read(length), "its header", bounded=True)
                # It checks types, and that all offsets fit; what cannot be opened, it calls missing, so it comes second.
                with safe_open(path, framework="numpy"):
                    pass
        except FileNotFoundError:
            raise CheckpointError(f"no such file: '{path}'{', which the index names' if expected else ''}") from None
        except OSError as error:
            raise CheckpointError(f"'{path}' cannot be read: {error.strerror or error}") from None
        except (SafetensorError, ValueError, JsonError) as error:
            raise CheckpointError(f"'{path}' is not a safetensors file that can be read: {str(error)[:500]}") from None
        text = header.pop("__metadata__", {})
        for name, entry in header.items():
            if entry["dtype"] not in _DTYPES:
                raise CheckpointError(
                    f"'{path}': {name[:200]} has type {entry['dtype']}, which this version does not read"
                )
            if MODEL + name in self.specs:
                raise CheckpointError(f"'{path.parent}' has the tensor '{name[:200]}' in two shards")
            self.specs[MODEL + name] = Spec(tuple(entry["shape"]), _DTYPES[entry["dtype"]])
            self._places[MODEL + name] = path, 8 + length + entry["data_offsets"][0]
        return dict(text)

    def read_into(self, name: str, target: memoryview) -> None:
        path, offset = self._places[name]
        try:
            read_at(self._open_files.descriptor(path), offset, target)
        except OSError as error:
            raise CheckpointError(f"'{path}' cannot be read: {error.strerror}") from None


def files_of(path: Path) -> dict[Path, list[str] | None]:
    """The files, each with the tensors that it must have, where an index says so."""
    if path.is_dir():
        index = path / SAFETENSORS_INDEX
        path = index if index.is_file() else path / SAFETENSORS
    if not path.name.endswith(INDEX_SUFFIX) or not path.is_file():
        return {path: None}
    files: dict[Path, list[str] | None] = {}
    try:
        for name, file in read_json(path)["weight_map"].items():
            if not isinstance(file, str) or Path(file).name != file:
                raise CheckpointError(f"{path} is refused: it names the shard {file!r}, which is not a file beside it")
            found = files.setdefault(path.parent / file, [])
            assert found is not None
            found.append(name)
    except (OSError, JsonError, LookupError, TypeError, AttributeError):
        files = {}
    if not files:
        raise CheckpointError(f"{path} is damaged: it has no weight_map of names and files")
    return files


def write_safetensors(
    source: TensorSource, work: Workspace, progress: Progress, max_shard_bytes: int, header: Mapping[str, str]
) -> None:
    """Writes the source's weights, one tensor after another, into one file or into several with an index.

    Raises:
        CheckpointError: a type that the format does not have.
    """
    plain = {name.removeprefix(MODEL): spec for name, spec in source.specs.items() if name.startswith(MODEL)}
    aliases = {alias.removeprefix(MODEL): name.removeprefix(MODEL) for alias, name in source.aliases.items()}
    text = {**header, **aliases}
    files = _named(list(split_by_bytes(plain, max_shard_bytes)))
    reader = Reader(source)
    for file, names in files.items():
        for name in names:
            if plain[name].dtype not in _NAMES:
                raise CheckpointError(
                    f"{name} has type {plain[name].dtype}, which safetensors has not; convert --to dcp"
                )
        work.write_file(file, _items(reader, {name: plain[name] for name in names}, text, progress))
    if len(files) > 1:
        total = sum(spec.num_bytes for spec in plain.values())
        index = {
            "metadata": {"total_size": total},
            "weight_map": {n: file for file, names in files.items() for n in names},
        }
        work.write_index(SAFETENSORS_INDEX, json.dumps(index, indent=1).encode())


def _named(shards: list[list[str]]) -> dict[str, list[str]]:
    if len(shards) == 1:
        return {SAFETENSORS: shards[0]}
    stem = Path(SAFETENSORS).stem
    return {
        f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors": names for number, names in enumerate(shards, start=1)
    }


def _items(
    reader: Reader, specs: Mapping[str, Spec], text: Mapping[str, str], progress: Progress
) -> Iterator[tuple[str, Callable[[HashedFile], None]]]:
    # The widest types first, as the library does it: so every tensor is aligned.
    names = sorted(specs, key=lambda name: -ITEM_BYTES[specs[name].dtype])
    yield "", partial(_write_header, {name: specs[name] for name in names}, text)
    for name in names:
        yield name, partial(_write_tensor, reader, MODEL + name, progress)


def _write_header(specs: Mapping[str, Spec], text: Mapping[str, str], file: HashedFile) -> None:
    header: dict[str, Any] = {"__metadata__": dict(text)}
    end = 0
    for name, spec in specs.items():
        header[name] = {
            "dtype": _NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [end, end + spec.num_bytes],
        }
        end += spec.num_bytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    file.write(struct.pack("<Q", len(encoded)) + encoded)


def _write_tensor(reader: Reader, name: str, progress: Progress, file: HashedFile) -> None:
    progress(file.write(reader.read(name)))
