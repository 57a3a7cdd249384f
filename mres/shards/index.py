"""The offset index of a shard set: where every record lies in its shard, its checksum, how many expressions it holds.

One row a record, of the same form for every layout (tar, MDS): a reader needs no more to fetch a record with one read.

Legend: N records.
"""

import io
import math
import zlib
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from mres.errors import UserError
from mres.io.files import replacing

# `offset` and `size` span the record in its shard, in bytes; image and JSON lie within the span, at offsets from its start.
INDEX_DTYPE = np.dtype(
    [
        ("offset", "<i8"),
        ("size", "<u4"),
        ("image_offset", "<u4"),
        ("image_size", "<u4"),
        ("json_offset", "<u4"),
        ("json_size", "<u4"),
        ("num_object_expressions", "<i4"),
        ("num_part_expressions", "<i4"),
        ("crc32", "<u4"),  # of the span
        ("key", "<u4"),  # number of the record in its source
        ("shard", "<u4"),  # position in the manifest's list of shards
    ]
)
INDEX_NAME = "index.npy"
KEY_DIGITS = 8


def record_key(number: int) -> str:
    """The name of record `number` of a source in shards and messages: "00000123"."""
    return f"{number:0{KEY_DIGITS}d}"


def new_index(keys: list[int], expressions_N2: np.ndarray) -> np.ndarray:
    """An index (N,) that says the records' numbers and how many expressions of objects and parts they have."""
    index_N = np.zeros(len(keys), INDEX_DTYPE)
    index_N["key"] = keys
    index_N["num_object_expressions"], index_N["num_part_expressions"] = expressions_N2.T
    return index_N


def checksum_rows(path: Path, index_N: np.ndarray) -> None:
    """Fills in `crc32` from the bytes of the shard at `path`."""
    with path.open("rb") as file:
        for row in index_N:
            file.seek(int(row["offset"]))
            row["crc32"] = zlib.crc32(file.read(int(row["size"])))


def write_index(path: Path, index_N: np.ndarray) -> None:
    with replacing(path) as file:
        np.save(file, index_N, allow_pickle=False)


def load_index(source: Path | io.BytesIO, where: str) -> np.ndarray:
    """The index in a file, mapped, not read (processes of a machine share its pages), or in the bytes of one.

    Raises:
        UserError: not an index; messages call it `where`.
    """
    return load_array(source, where, INDEX_DTYPE, ())


def load_array(source: Path | io.BytesIO, where: str, dtype: np.dtype, row: tuple[int, ...]) -> np.ndarray:
    """The array (N, *row) of a .npy file, mapped, or of the bytes of one; of no more memory than the file has bytes.

    Raises:
        UserError: not such an array; messages call it `where`.
    """
    try:
        with source.open("rb") if isinstance(source, Path) else nullcontext(source) as file:
            if (version := npy.read_magic(file)) != (1, 0):
                raise ValueError(f"it is of version {version} of the format")
            shape, _, found = npy.read_array_header_1_0(file)
            start, end = file.tell(), file.seek(0, io.SEEK_END)
        if found != dtype or len(shape) != 1 + len(row) or shape[1:] != row:
            raise ValueError("it is not of this version")
        if start + math.prod(shape) * dtype.itemsize != end:
            raise ValueError(f"it says that it has {shape[0]} rows, and has {end - start:,} bytes of them")
        if isinstance(source, Path):
            return np.asarray(np.memmap(source, dtype, "r", start, shape))
        return np.frombuffer(source.getbuffer(), dtype, offset=start).reshape(shape)
    except Exception as error:  # its header is a text of Python, whose parser fails in many ways
        reason = str(error) or type(error).__name__
        raise UserError(f"'{where}' is not an index: {reason[:300]}; build the set again") from None


def stray_row(index_N: np.ndarray, shards: Sequence[tuple[int, int]]) -> int | None:
    """The first row that does not lie within its shard, or whose image or JSON does not lie within its record.

    Args:
        shards: bytes and records of each shard; the rows of one come together, in their order.
    """
    bytes_N, number_N = (
        np.repeat(values, [records for _, records in shards]) for values in ([b for b, _ in shards], range(len(shards)))
    )
    size_N = index_N["size"].astype(np.int64)
    good_N = (index_N["shard"] == number_N) & (index_N["offset"] >= 0) & (index_N["offset"] <= bytes_N - size_N)
    for member in ("image", "json"):
        good_N &= index_N[f"{member}_offset"].astype(np.int64) + index_N[f"{member}_size"] <= size_N
    for granularity in ("object", "part"):
        good_N &= index_N[f"num_{granularity}_expressions"] >= 0
    return None if good_N.all() else int(good_N.argmin())
