"""Small real shard sets."""

from collections.abc import Callable
from pathlib import Path

import pytest
from made_records import make_record

from mres.shards.manifest import Manifest
from mres.shards.writer import WriteOptions, write_shards
from mres.sources.source import RecordSource

WriteSet = Callable[..., Manifest]


@pytest.fixture
def write_set() -> WriteSet:
    """Writes records (default: 7) in shards of 3."""

    def write(out: Path, records: list | None = None, **options) -> Manifest:
        records = [make_record(i) for i in range(7)] if records is None else records
        given = WriteOptions(**{"images_per_shard": 3, **options})
        return write_shards(RecordSource.of(records, {"format": "test"}, "test"), out, given)

    return write


@pytest.fixture
def shard_folder(tmp_path: Path, write_set: WriteSet) -> Path:
    write_set(tmp_path / "set")
    return tmp_path / "set"
