"""Whether a conversion wrote what it read: tensor by tensor, bit by bit, from the files themselves."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mres.formats.casting import CASTABLE, cast_into
from mres.formats.folder import CheckpointError
from mres.formats.memory import Reader, same_bytes
from mres.formats.tensors import ITEM_BYTES, Spec, TensorSource
from mres.io.progress import count_bytes

_PIECE = 1 << 20  # elements that are compared at a time where they are cast for it


def check_same(given: TensorSource, written: TensorSource, where: Path) -> None:
    """Reads both, tensor by tensor: the same names, shapes and bits.

    Raises:
        CheckpointError: they differ.
    """
    differ = sorted(set(given.specs) ^ set(written.specs)) + sorted(
        alias for alias, _ in given.aliases.items() ^ written.aliases.items()
    )
    if differ:
        raise CheckpointError(f"'{where}': {differ[0]} is on one side only; please report it")
    one, other = Reader(given), Reader(written)
    total = sum(spec.num_bytes for spec in given.specs.values())
    with count_bytes(total, "checking") as progress, ThreadPoolExecutor(1) as aside:
        for name, spec in given.specs.items():
            reading = aside.submit(other.read, name)
            bits = one.read(name)
            if not _same(bits, spec, reading.result(), written.specs[name]):
                raise CheckpointError(
                    f"'{where}': {name} ({spec.dtype}) does not read back as it was written; is the disk sound, or has the "
                    f"format a narrower type ({written.specs[name].dtype})?"
                )
            progress(spec.num_bytes)


def _same(given: memoryview, spec: Spec, written: memoryview, as_written: Spec) -> bool:
    """The same shape and bits. DeepSpeed's format has float32 only, which holds what is narrower."""
    if spec.shape != as_written.shape:
        return False
    if spec.dtype == as_written.dtype:
        return same_bytes(given, written)
    if not {spec.dtype, as_written.dtype} <= set(CASTABLE):
        return False
    width, written_width = ITEM_BYTES[spec.dtype], ITEM_BYTES[as_written.dtype]
    back = memoryview(bytearray(min(_PIECE, spec.numel) * width))
    for at in range(0, spec.numel, _PIECE):
        num = min(_PIECE, spec.numel - at)
        cast_into(
            written[at * written_width : (at + num) * written_width], as_written.dtype, back[: num * width], spec.dtype
        )
        if not same_bytes(given[at * width : (at + num) * width], back[: num * width]):
            return False
    return True
