"""The MosaicML MDS layout: written by `streaming.MDSWriter`, read by our own reader through the index.

An MDS file is a uint32 number of samples, the uint32 offsets of all samples and of the end, a JSON header, then the
samples; a sample is a uint32 size for each column of variable length, then the columns in the order of their names.
`streaming` takes seconds to import and keeps locks and shared memory: it is used here to write, and nowhere else.

Legend: N records of a shard.
"""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from mres.errors import UserError, install
from mres.io.files import write_atomically
from mres.records import ImageRecord
from mres.shards.index import checksum_rows, new_index, record_key
from mres.shards.tar import json_bytes

MDS_INDEX_NAME = "index.json"
COLUMNS = {"id": "str", "image": "bytes", "record": "json"}  # sorted by name, as the writer lays them out


class MdsShard:
    """One MDS file while it is written."""

    suffix = ".mds"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folder = path.with_name(path.name + ".writing")
        shutil.rmtree(self._folder, ignore_errors=True)
        self._writer = _writer_class()(out=str(self._folder), columns=COLUMNS, size_limit=None)

    def add(self, number: int, record: ImageRecord, suffix: str) -> None:
        """Appends record `number` of the source; `suffix` is its image's."""
        value = json.loads(json_bytes(record, f"{record_key(number)}.{suffix}"))
        self._writer.write({"id": record.id, "image": record.image, "record": value})

    def close(self) -> None:
        """Moves the one file to its place, its description beside it."""
        self._writer.finish()
        index = json.loads((self._folder / MDS_INDEX_NAME).read_text())
        (entry,) = index["shards"]
        os.rename(self._folder / entry["raw_data"]["basename"], self.path)
        entry["raw_data"]["basename"] = self.path.name
        write_atomically(description_path(self.path), json.dumps(entry).encode())
        shutil.rmtree(self._folder)

    def index(self, keys: list[int], expressions_N2: np.ndarray) -> np.ndarray:
        """The index of the closed shard; arguments, result and errors as of `tar.TarShard.index`."""
        index_N = new_index(keys, expressions_N2)
        with self.path.open("rb") as file:
            (count,) = np.frombuffer(file.read(4), "<u4")
            if count != len(keys):
                raise UserError(f"{self.path}: holds {count} samples, expected {len(keys)}")
            offsets_N1 = np.frombuffer(file.read(4 * (len(keys) + 1)), "<u4").astype(np.int64)
            index_N["offset"], index_N["size"] = offsets_N1[:-1], np.diff(offsets_N1)
            for row in index_N:
                file.seek(int(row["offset"]))
                id_size, image_size, json_size = np.frombuffer(file.read(12), "<u4")
                row["image_offset"], row["image_size"] = 12 + id_size, image_size
                row["json_offset"], row["json_size"] = 12 + id_size + image_size, json_size
        checksum_rows(self.path, index_N)
        return index_N


def _writer_class() -> Any:
    try:
        from streaming import MDSWriter
    except ImportError as error:
        raise UserError(f"--format mds needs mosaicml-streaming ({error}); {install('mds')}") from None
    logging.getLogger("streaming").setLevel(logging.WARNING)
    return MDSWriter


def description_path(shard: Path) -> Path:
    """Where a finished file's entry for `index.json` waits until all are there."""
    return shard.with_name(shard.name + ".json")


def write_mds_index(folder: Path, names: list[str]) -> None:
    """`index.json`, by which the streaming library finds the files."""
    entries = [json.loads(description_path(folder / name).read_text()) for name in names]
    content = json.dumps({"version": 2, "shards": entries}, sort_keys=True)
    write_atomically(folder / MDS_INDEX_NAME, content.encode())
