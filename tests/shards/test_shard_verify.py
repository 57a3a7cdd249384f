"""Any changed bit is found and its place named."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mres.errors import UserError
from mres.records import RecordError
from mres.shards.reader import ShardSet
from mres.shards.verify import damages


def test_a_good_set_has_no_damage(shard_folder: Path) -> None:
    assert damages(str(shard_folder)) == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_named_with_its_shard_and_record(shard_folder: Path, share: float, bit: int) -> None:
    tar = shard_folder / "shard-000001.tar"
    good = tar.read_bytes()
    position = int(share * len(good))
    tar.write_bytes(good[:position] + bytes([good[position] ^ 1 << bit]) + good[position + 1 :])
    try:
        found = damages(str(shard_folder))
        assert len(found) == 1
        assert str(tar) in found[0]
        rows = np.load(shard_folder / "index.npy")[3:6]
        starts = [int(row["offset"]) for row in rows]
        hit = [3 + i for i, start in enumerate(starts) if start <= position < start + rows[i]["size"]]
        assert [f"{index:08d}" for index in range(7) if f"{index:08d}" in found[0]] == [f"{i:08d}" for i in hit]
        for index in hit:
            with pytest.raises(RecordError, match=f"{index:08d}: damaged"):
                ShardSet(shard_folder).read(index)
    finally:
        tar.write_bytes(good)


@pytest.mark.parametrize("name", ["index.npy", "manifest.json"])
def test_a_flipped_bit_in_index_or_manifest_is_found(name: str, shard_folder: Path) -> None:
    path = shard_folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    found = damages(str(shard_folder))
    assert len(found) == 1
    assert name in found[0]


def test_missing_cut_and_stray_files_are_found(shard_folder: Path) -> None:
    (shard_folder / "shard-000000.tar").unlink()
    tar = shard_folder / "shard-000001.tar"
    tar.write_bytes(tar.read_bytes()[:3000])
    (shard_folder / "shard-000009.tar").write_bytes(b"")
    found = "\n".join(damages(str(shard_folder)))
    assert "shard-000009.tar: the manifest does not list" in found
    assert "shard-000000.tar: cannot be read" in found
    assert "shard-000001.tar: has 3000 bytes, its manifest says" in found


def test_what_is_no_set_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the folder is empty"):
        damages(str(tmp_path))
