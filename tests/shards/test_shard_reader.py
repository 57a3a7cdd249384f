"""Random access: across shards, processes and threads; and what is said when files do not fit."""

import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from made_records import make_record

from mres.errors import UserError
from mres.files import file_sha256
from mres.records import RecordError
from mres.shards import reader
from mres.shards.index import read_index, record_span, write_index
from mres.shards.manifest import make_manifest, read_manifest
from mres.shards.reader import ShardSet

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
    assert shards._descriptors == {}


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
        return sum(os.readlink(link).startswith(str(shard_folder)) for link in links if os.path.islink(link))

    monkeypatch.setattr(reader, "MAX_OPEN", 2)
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
        (lambda f: (f / "manifest.json").write_text("{"), "cannot read .*manifest.json"),
        (lambda f: edit_manifest(f, format="other"), "not the manifest of a shard set"),
        (lambda f: edit_manifest(f, version=2), "version 2, this mres reads version 1"),
        (lambda f: edit_manifest(f, source={"format": "?"}), "was changed after it was written"),
        (lambda f: edit_manifest(f, shards=[]), "breaks the format at 'shards'"),
        (lambda f: (f / "shard-000001.tar").unlink(), "shard-000001.tar' .*cannot be read: No such file"),
        (lambda f: truncate(f / "shard-000002.tar", 100), "shard-000002.tar' has 100 bytes, its manifest says"),
        (lambda f: truncate(f / "shard-000000.index.npy", 200), "shard-000000.index.npy' is not the index"),
        (lambda f: (f / "shard-000000.index.npy").unlink(), "shard-000000.index.npy'.*cannot be read"),
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
    tar, path = folder / "shard-000000.tar", folder / "shard-000000.index.npy"
    index_N = read_index(path, path.read_bytes())
    content = bytearray(tar.read_bytes())
    edit(content, index_N[1])
    tar.write_bytes(content)
    start, end = record_span(index_N[1])
    index_N[1]["crc32"] = reader.zlib.crc32(content[start:end])
    write_index(path, index_N)
    old = read_manifest(folder)
    first = old.shards[0].model_copy(update={"sha256": file_sha256(tar), "index_sha256": file_sha256(path)})
    make_manifest(old.source, old.options, old.counts, [first, *old.shards[1:]]).write(folder / "manifest.json")


def replace_json(content: bytearray, row: np.void, old: bytes, new: bytes) -> None:
    at = content.index(old, int(row["json_offset"]))
    content[at : at + len(old)] = new


def swap_member(content: bytearray, row: np.void) -> None:
    row["json_offset"] -= 512


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c, row: replace_json(c, row, b'{"id"', b'["id"'), "00000001.json is not JSON"),
        (lambda c, row: replace_json(c, row, b'"im1"', b"12345"), "field 'id': found 12345"),
        (
            lambda c, row: replace_json(c, row, b"00000001.jpg", b"00000001.gif"),
            "field 'image'.*expected '00000001.jpg'",
        ),
        (lambda c, row: replace_json(c, row, b"[12,20]", b"[20,12]"), r"target 'o'.*mask.size.*\[12, 20\]"),
        (swap_member, "expected the members 00000001.json"),
    ],
)
def test_a_record_that_breaks_the_format_is_named(edit, message: str, shard_folder: Path) -> None:
    rewrite(shard_folder, edit)
    shards = ShardSet(shard_folder)
    with pytest.raises(RecordError, match=message) as caught:
        shards.read(1)
    assert str(caught.value).startswith(f"{shard_folder}/shard-000000.tar: 00000001")
    assert shards.read(2) == make_record(2)
