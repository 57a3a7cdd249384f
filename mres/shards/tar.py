"""The WebDataset layout: a tar with two members a record, `<key>.jpg` (or png) and `<key>.json`.

Legend: N records of a shard.
"""

import json
import tarfile
from pathlib import Path

import numpy as np

from mres.errors import UserError
from mres.record_json import record_to_json
from mres.records import ImageRecord
from mres.shards.index import checksum_rows, new_index, record_key

IMAGE_SUFFIXES = ("jpg", "png")
_BLOCK = 512


class TarShard:
    """One tar while it is written."""

    suffix = ".tar"

    def __init__(self, path: Path) -> None:
        from webdataset import TarWriter  # takes seconds

        self.path = path
        self._file = path.open("wb")
        # Nothing of the machine or the moment enters the bytes: the same records give the same hash.
        self._writer = TarWriter(self._file, user="", group="", mode=0o644, mtime=0, encoder=False)

    def add(self, number: int, record: ImageRecord, suffix: str) -> None:
        """Appends record `number` of the source; `suffix` is its image's."""
        key = record_key(number)
        self._writer.write({"__key__": key, suffix: record.image, "json": json_bytes(record, f"{key}.{suffix}")})

    def close(self) -> None:
        self._writer.close()
        self._file.close()

    def index(self, keys: list[int], expressions_N2: np.ndarray) -> np.ndarray:
        """The index of the closed shard, read from its headers.

        Args:
            keys: the numbers of its N records, in their order.
            expressions_N2: number of object and of part expressions of each record.

        Returns:
            Structured array (N,), see `index.INDEX_DTYPE`.

        Raises:
            UserError: the tar is damaged or holds other members than the N records.
        """
        index_N = new_index(keys, expressions_N2)
        starts_N2, sizes_N2 = _members(self.path, keys)
        index_N["offset"] = starts_N2.min(axis=1) - _BLOCK
        index_N["size"] = (starts_N2 + sizes_N2).max(axis=1) - index_N["offset"]
        for column, name in enumerate(("image", "json")):
            index_N[f"{name}_offset"] = starts_N2[:, column] - index_N["offset"]
            index_N[f"{name}_size"] = sizes_N2[:, column]
        checksum_rows(self.path, index_N)
        return index_N


def json_bytes(record: ImageRecord, image_name: str) -> bytes:
    """The record as it lies in a shard."""
    return json.dumps(record_to_json(record, image_name), ensure_ascii=False, separators=(",", ":")).encode()


def _members(path: Path, keys: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Where the data of image and JSON of each record starts, and how long they are: two int64 arrays (N, 2)."""
    starts_N2, sizes_N2 = np.zeros((len(keys), 2), np.int64), np.zeros((len(keys), 2), np.int64)
    row_of = {record_key(key): row for row, key in enumerate(keys)}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                column = 1 if suffix == "json" else 0 if suffix in IMAGE_SUFFIXES else None
                if key not in row_of or column is None or not member.isreg():
                    raise UserError(f"{path}: member '{member.name}' does not belong there")
                starts_N2[row_of[key], column], sizes_N2[row_of[key], column] = member.offset_data, member.size
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path}: cannot be read as a tar: {error}") from None
    missing = np.flatnonzero((starts_N2 == 0).any(axis=1))
    if missing.size:
        raise UserError(f"{path}: record {record_key(keys[int(missing[0])])} lacks a member")
    return starts_N2, sizes_N2
