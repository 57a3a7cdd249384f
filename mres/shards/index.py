"""The offset index beside each shard: where the two members of every record lie, their checksum, and how many
expressions they hold.

Legend: N records of a shard.
"""

import io
import tarfile
import zlib
from pathlib import Path

import numpy as np

from mres.errors import UserError

# Offsets are of the member's data, in bytes from the start of the tar; sizes are in bytes.
INDEX_DTYPE = np.dtype(
    [
        ("image_offset", "<i8"),
        ("image_size", "<i8"),
        ("json_offset", "<i8"),
        ("json_size", "<i8"),
        ("num_object_expressions", "<i4"),
        ("num_part_expressions", "<i4"),
        ("crc32", "<u4"),  # of the record's span, see `record_span`
    ]
)
IMAGE_SUFFIXES = ("jpg", "png")
TAR_BLOCK = 512
KEY_DIGITS = 8


def record_key(position: int) -> str:
    """The members' common name of the record at `position` (from 0) of a set: "00000123"."""
    return f"{position:0{KEY_DIGITS}d}"


def index_tar(path: Path, first: int, expressions_N2: np.ndarray) -> np.ndarray:
    """The index of a shard, read from its tar headers.

    Args:
        path: the tar.
        first: position in the set of its first record.
        expressions_N2: number of object and of part expressions of each record.

    Returns:
        Structured array (N,) of `INDEX_DTYPE`.

    Raises:
        UserError: the tar is damaged or holds other members than the N records.
    """
    index_N = np.zeros(len(expressions_N2), INDEX_DTYPE)
    index_N["num_object_expressions"] = expressions_N2[:, 0]
    index_N["num_part_expressions"] = expressions_N2[:, 1]
    position_of = {record_key(first + i): i for i in range(len(index_N))}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                column = "json" if suffix == "json" else "image" if suffix in IMAGE_SUFFIXES else None
                if key not in position_of or column is None or not member.isreg():
                    raise UserError(f"{path}: member '{member.name}' does not belong there")
                row = index_N[position_of[key]]
                row[f"{column}_offset"], row[f"{column}_size"] = member.offset_data, member.size
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path}: cannot be read as a tar: {error}") from None
    missing = np.flatnonzero((index_N["json_offset"] == 0) | (index_N["image_offset"] == 0))
    if missing.size:
        raise UserError(f"{path}: record {record_key(first + int(missing[0]))} lacks a member")
    with path.open("rb") as file:
        for row in index_N:
            start, end = record_span(row)
            file.seek(start)
            row["crc32"] = zlib.crc32(file.read(end - start))
    return index_N


def record_span(row: np.void) -> tuple[int, int]:
    """(start, end) of the bytes of one record in its tar: from its first member's header to its last member's end."""
    image, text = int(row["image_offset"]), int(row["json_offset"])
    start = min(image, text) - TAR_BLOCK
    return start, max(image + int(row["image_size"]), text + int(row["json_size"]))


def write_index(path: Path, index_N: np.ndarray) -> None:
    np.save(path, index_N, allow_pickle=False)


def read_index(path: Path, content: bytes) -> np.ndarray:
    """The index in `content`, the bytes of the file `path`.

    Raises:
        UserError: not an index.
    """
    try:
        index_N = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"'{path}' is not an index: {error}; build the set again") from None
    if index_N.dtype != INDEX_DTYPE or index_N.ndim != 1:
        raise UserError(f"'{path}' is not an index of this version; build the set again")
    return index_N
