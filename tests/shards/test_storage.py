"""Folders as storages, and what tells folders from URLs."""

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from remote_server import exit_code, in_fork

from mres.errors import UserError
from mres.shards import storage as storage_module
from mres.shards.remote import RemoteOptions, RemoteStorage, open_storage
from mres.shards.storage import LocalStorage, is_remote, join


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.tar").write_bytes(bytes([number]) * 100)
    return folder


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("s3://bucket/set", True),
        ("https://host/set", True),
        ("file:///data/set", True),
        ("gs://b", True),
        ("/data/set", False),
        ("data/s3:/set", False),
        ("c:/set", False),
        (Path("data"), False),
    ],
)
def test_is_remote(location: str | Path, expected: bool) -> None:
    assert is_remote(location) is expected


@pytest.mark.parametrize(
    ("location", "name", "expected"),
    [
        ("data/set", "a.tar", "data/set/a.tar"),
        ("s3://bucket/set", "a.tar", "s3://bucket/set/a.tar"),
        ("s3://bucket/set/", "a.tar", "s3://bucket/set/a.tar"),
        ("s3://bucket/a//b", "c", "s3://bucket/a//b/c"),
        ("s3://bucket/set", "../other", "s3://bucket/other"),
        ("https://host/a/b", "../../c", "https://host/c"),
        ("file:///data/set", "../other", "file:///data/other"),
        ("s3://bucket/set", "gs://b/other", "gs://b/other"),
        ("data/set", "s3://bucket/other", "s3://bucket/other"),
        ("data/set", "/data/other", "/data/other"),
        ("/no/set", "../other", "/no/other"),
    ],
)
def test_join(location: str, name: str, expected: str) -> None:
    assert join(location, name) == expected


def test_join_goes_up_from_where_a_link_leads(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir()
    (folder.parent / "elsewhere" / "link").symlink_to(folder)
    assert join(str(folder.parent / "elsewhere" / "link"), "../other") == str(folder.parent / "other")


@pytest.mark.parametrize("name", ["../../other", "../../../other"])
def test_join_stays_in_its_bucket(name: str) -> None:
    with pytest.raises(UserError, match=f"'{name}' leads out of 's3://bucket/set'; give the full URL"):
        join("s3://bucket/set", name)


def test_open_storage(folder: Path, tmp_path: Path) -> None:
    options = RemoteOptions(tmp_path / "cache")
    assert type(open_storage(folder)) is type(open_storage(str(folder), options)) is LocalStorage
    remote = open_storage(f"file://{folder}", options)
    assert type(remote) is RemoteStorage
    assert remote.location == f"file://{folder}"


@pytest.mark.parametrize("url", ["{}", "file://{}"])
@pytest.mark.parametrize("cache", [".", "cache"])
def test_a_cache_within_the_set_is_refused(url: str, cache: str, folder: Path) -> None:
    with pytest.raises(UserError, match=r"is inside the shard set .*; give the cache a folder of its own"):
        open_storage(url.format(folder), RemoteOptions(folder / cache))
    assert sorted(os.listdir(folder)) == [f"{number}.tar" for number in range(5)]


def check_reads(storage: LocalStorage) -> None:
    for number in range(5):
        assert storage.read_range(f"{number}.tar", 10 * number, 10) == bytes([number]) * 10


def test_reading_a_folder(folder: Path) -> None:
    storage = LocalStorage(str(folder))
    assert storage.read("3.tar") == b"\3" * 100
    assert storage.size("3.tar") == 100
    assert storage.read_range("3.tar", 95, 50, (0, 100)) == b"\3" * 5
    assert storage.read_range("3.tar", 100, 50) == b""
    storage.prefetch([("4.tar", (0, 50)), ("missing.tar", (0, 50))])
    assert not storage.drop("3.tar", (0, 100))
    check_reads(storage)


@pytest.mark.parametrize("name", ["missing.tar", "0.tar/manifest.json"])
def test_missing_files(name: str, folder: Path) -> None:
    storage = LocalStorage(str(folder))
    with pytest.raises(FileNotFoundError):
        storage.read(name)
    for attempt in (storage.size, lambda name: storage.read_range(name, 0, 1)):
        with pytest.raises((FileNotFoundError, NotADirectoryError)):
            attempt(name)


def test_what_cannot_be_read_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match=f"'{folder}/.' cannot be read: it is a folder.*; check its rights"):
        LocalStorage(str(folder)).read(".")


def open_files(folder: Path) -> int:
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return sum(os.readlink(link).startswith(str(folder)) for link in links if os.path.islink(link))


def test_descriptors_are_bounded_and_closed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "MAX_OPEN", 2)
    storage = LocalStorage(str(folder))
    check_reads(storage)
    assert open_files(folder) == 2
    storage.close()
    assert open_files(folder) == 0
    check_reads(storage)
    del storage
    assert open_files(folder) == 0


def test_threads_forks_and_pickles(folder: Path) -> None:
    storage = LocalStorage(str(folder))
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(check_reads, storage) for _ in range(50)]:
            done.result()
    assert open_files(folder) == 5, "threads that open the same file keep one descriptor"
    assert exit_code(in_fork(check_reads, storage)) == 0
    check_reads(pickle.loads(pickle.dumps(storage)))
