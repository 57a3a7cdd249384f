"""The offset index of a shard set: where every record lies in its shard, its checksum, how many expressions it holds.

One row a record, of the same form for every layout (tar, MDS): a reader needs no more to fetch a record with one read.

Legend: N records.
"""

import io
import zlib
from pathlib import Path

import numpy as np

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
    try:
        index_N = np.load(source, mmap_mode="r" if isinstance(source, Path) else None, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"'{where}' is not an index: {error}; build the set again") from None
    if index_N.dtype != INDEX_DTYPE or index_N.ndim != 1:
        raise UserError(f"'{where}' is not an index of this version; build the set again")
    return np.asarray(index_N)
