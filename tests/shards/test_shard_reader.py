"""Random access: across shards, processes and threads; and what is said when files do not fit."""

import json
import multiprocessing
import os
import pickle
import re
import shutil
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_records import make_record

from mres.errors import UserError
from mres.io.files import file_sha256
from mres.records import RecordError
from mres.shards import reader, storage
from mres.shards.index import write_index
from mres.shards.manifest import IndexFile, make_manifest, read_manifest
from mres.shards.reader import ShardSet
from mres.shards.remote import open_storage
from mres.shards.verify import damages

REPOSITORY = Path(__file__).parents[2]


def test_every_record_comes_back_in_any_order(shard_folder: Path) -> None:
    shards = ShardSet(shard_folder)
    assert len(shards) == 7
    for index in (6, 0, 3, 2, 5, 1, 4, 4):
        assert shards.read(index) == make_record(index)
    assert shards.name(4) == f"{shard_folder}/shard-000001.tar: 00000004"
    assert shards.fingerprint == json.loads((shard_folder / "manifest.json").read_text())["sha256"]
    for index in (-1, 7):
        with pytest.raises(IndexError, match="records 0 to 6"):
            shards.read(index)


def test_the_number_of_expressions_is_known_without_reading(shard_folder: Path) -> None:
    shards = ShardSet(str(shard_folder))
    assert shards.num_expressions_N.dtype == np.int32
    assert shards.num_expressions_N.tolist() == [make_record(i).num_expressions for i in range(7)]


def test_it_works_after_a_fork_in_spawned_workers_and_in_threads(shard_folder: Path) -> None:
    shards = ShardSet(shard_folder)
    expected = [shards.read(i) for i in range(7)]
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.map(shards.read, range(7), chunksize=1) == expected
    fresh = pickle.loads(pickle.dumps(shards))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(fresh.read, [i % 7 for i in range(200)])) == [expected[i % 7] for i in range(200)]


def test_descriptors_are_bounded_and_closed(shard_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_shards() -> int:
        links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        paths = [os.readlink(link) for link in links if os.path.islink(link)]
        return sum(path.startswith(str(shard_folder)) and path.endswith(".tar") for path in paths)

    monkeypatch.setattr(storage, "MAX_OPEN", 2)
    shards = ShardSet(shard_folder)
    assert [shards.read(i) for i in range(7)] == [make_record(i) for i in range(7)]
    assert open_shards() == 2
    shards.close()
    assert open_shards() == 0
    assert shards.read(0) == make_record(0)
    del shards
    assert open_shards() == 0


def test_reading_needs_neither_torch_nor_webdataset(shard_folder: Path) -> None:
    code = (
        "import sys; from mres.shards.reader import ShardSet; ShardSet(sys.argv[1]).read(0);"
        "print(sorted({'torch', 'webdataset', 'PIL', 'pycocotools'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(shard_folder)], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def edit_manifest(folder: Path, **fields: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def truncate(path: Path, size: int) -> None:
    os.truncate(path, size)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "the folder does not exist.*tools/shard.py build"),
        (lambda f: [path.unlink() for path in f.iterdir()], "the folder is empty.*tools/shard.py build"),
        (lambda f: (f / "manifest.json").unlink(), "it has no manifest.json.*tools/shard.py build"),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest.json': not JSON"),
        (lambda f: edit_manifest(f, format="other"), "not the manifest of a shard set"),
        (lambda f: edit_manifest(f, version=1), "version 1, this mres reads version 2"),
        (lambda f: edit_manifest(f, source={"format": "?"}), "was changed after it was written"),
        (lambda f: edit_manifest(f, shards=[]), "breaks the format at 'shards'"),
        (lambda f: (f / "shard-000001.tar").unlink(), "shard-000001.tar' .*cannot be read: No such file"),
        (lambda f: truncate(f / "shard-000002.tar", 100), "shard-000002.tar' has 100 bytes, its manifest says"),
        (lambda f: truncate(f / "index.npy", 200), "index.npy' is not the index"),
        (lambda f: (f / "index.npy").unlink(), "index.npy'.*cannot be read"),
    ],
)
def test_a_set_whose_files_do_not_fit_is_refused(damage, message: str, shard_folder: Path) -> None:
    damage(shard_folder)
    with pytest.raises(UserError, match=message):
        ShardSet(shard_folder)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="it is not a folder"):
        ShardSet(tmp_path / "file")


def test_a_shard_that_is_cut_while_it_is_read(shard_folder: Path) -> None:
    shards = ShardSet(shard_folder)
    truncate(shard_folder / "shard-000001.tar", 600)
    with pytest.raises(RecordError, match=r"shard-000001.tar: 00000003: truncated: 600 of \d+ bytes"):
        shards.read(3)
    (shard_folder / "shard-000002.tar").unlink()
    with pytest.raises(RecordError, match=r"shard-000002\.tar: 00000006: cannot be read: No such file"):
        shards.read(6)
    assert shards.read(0) == make_record(0)


def rewrite(folder: Path, edit) -> None:
    """Changes record 1 and signs the result: as another program might have written it."""
    tar, path = folder / "shard-000000.tar", folder / "index.npy"
    index_N = np.load(path)
    content = bytearray(tar.read_bytes())
    edit(content, index_N[1])
    tar.write_bytes(content)
    start = int(index_N[1]["offset"])
    index_N[1]["crc32"] = zlib.crc32(content[start : start + int(index_N[1]["size"])])
    write_index(path, index_N)
    old = read_manifest(open_storage(folder))
    first = old.shards[0].model_copy(update={"sha256": file_sha256(tar)})
    index = IndexFile(bytes=path.stat().st_size, sha256=file_sha256(path))
    signed = make_manifest(old.source, old.options, old.counts, index, [first, *old.shards[1:]])
    (folder / "manifest.json").write_bytes(signed.to_bytes())


def replace_json(content: bytearray, row: np.void, old: bytes, new: bytes) -> None:
    at = content.index(old, int(row["offset"]) + int(row["json_offset"]))
    content[at : at + len(old)] = new


def swap_member(content: bytearray, row: np.void) -> None:
    row["json_offset"] -= 512


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c, row: replace_json(c, row, b'{"id"', b'["id"'), "not JSON"),
        (
            lambda c, row: replace_json(c, row, b'"width"', b'"wodth"'),
            r"not a record of this version.*KeyError\('width'\)",
        ),
        (lambda c, row: replace_json(c, row, b'"text":"the car"', b'"text_":"th car"'), "not a record of this version"),
        (swap_member, "not JSON"),
    ],
)
def test_a_record_that_breaks_the_format_is_named(edit, message: str, shard_folder: Path) -> None:
    rewrite(shard_folder, edit)
    shards = ShardSet(shard_folder)
    with pytest.raises(RecordError, match=message) as caught:
        shards.read(1)
    assert str(caught.value).startswith(f"{shard_folder}/shard-000000.tar: 00000001")
    assert shards.read(2) == make_record(2)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c, row: replace_json(c, row, b'"im1"', b"12345"), "field 'id': found 12345"),
        (lambda c, row: replace_json(c, row, b"[12,20]", b"[20,12]"), r"target 'o'.*mask.size.*\[12, 20\]"),
    ],
)
def test_what_reading_does_not_check_verifying_does(edit, message: str, shard_folder: Path) -> None:
    rewrite(shard_folder, edit)
    (found,) = damages(str(shard_folder))
    assert re.search(message, found)


def test_blocks_are_runs_of_one_shard(shard_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ShardSet(shard_folder).block_starts.tolist() == [0, 3, 6]
    monkeypatch.setattr(reader, "BLOCK_RECORDS", 2)
    shards = ShardSet(shard_folder)
    assert shards.block_starts.tolist() == [0, 2, 3, 5, 6]
    sizes = [shards.index_N[a]["size"] for a in range(7)]
    assert max(sizes) <= shards.largest_block() <= 2 * max(sizes) + 512


def test_annotations_are_the_record_without_its_image(shard_folder: Path) -> None:
    assert ShardSet(shard_folder).annotations(5) == replace(make_record(5), image=b"")
