"""Files of named tensors, whichever library wrote them; what a file is, its contents say and not its name."""

from __future__ import annotations

from pathlib import Path

from mres.formats.folder import CheckpointError
from mres.formats.safetensors import INDEX_SUFFIX, SafetensorsSource
from mres.formats.weights import Weights
from mres.io.files import open_regular
from mres.pretrained.foreign import foreign
from mres.pretrained.torch_files import TorchTensors


def open_tensors(path: Path) -> Weights:
    """A file of safetensors, torch.save or torch.jit.save, or a folder of safetensors (sharded or not).

    Raises:
        CheckpointError: not there, none of these, or damaged.
    """
    if path.is_dir():
        return _safetensors(_file_in(path))
    try:
        with open_regular(path) as file:
            head = file.read(9)
    except FileNotFoundError:
        raise CheckpointError(f"no such file: '{path}'") from None
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror}") from None
    # After the length of the header, which is JSON; of a text, it would be astronomical.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40:
        return _safetensors(path)
    if what := foreign(path):
        raise CheckpointError(f"'{path}' cannot be read as tensors only: it {what}")
    source = TorchTensors(path)
    return Weights(source, source.format, source.others)


def _safetensors(path: Path) -> Weights:
    source = SafetensorsSource(path)
    num = source.num_files
    return Weights(source, "safetensors" if num == 1 else f"safetensors in {num} shards")


def _file_in(folder: Path) -> Path:
    """The folder's index of shards, or its only .safetensors file."""
    indices = sorted(folder.glob(f"*{INDEX_SUFFIX}"))
    files = sorted(folder.glob("*.safetensors"))
    if len(indices) != 1 and (len(files) != 1 or indices):
        found = ", ".join(file.name for file in [*indices, *files][:4]) or "none"
        raise CheckpointError(
            f"'{folder}' must hold one .safetensors file, or one *{INDEX_SUFFIX} beside its shards (found: {found}); "
            "name the file that you mean"
        )
    return (indices or files)[0]
