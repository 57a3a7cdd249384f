"""One file: whole as it was or whole as it is to be, whoever else writes it, and what is said where the disk does not take it."""

import multiprocessing
import os
import resource
import threading
from pathlib import Path

import pytest

from mres.errors import about_os
from mres.io.files import made_aside, part_of, replacing, write_atomically


def test_what_was_there_stands_until_the_new_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:  # noqa: PT012
        file.write(b"half")
        file.flush()
        assert path.read_bytes() == b"old"
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError, match="mine"), replacing(path):
        raise FileNotFoundError("mine")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_writers_take_turns(tmp_path: Path) -> None:
    path, contents = tmp_path / "file", [bytes([65 + n]) * 200_000 for n in range(8)]
    threads = [threading.Thread(target=write_atomically, args=(path, content)) for content in contents]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert not path.exists() or path.read_bytes() in contents
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("left", ["torn", "link", "hard link"])
def test_what_lies_in_the_way_is_not_written_to(left: str, tmp_path: Path) -> None:
    path, photo = tmp_path / "file", tmp_path / "photo"
    photo.write_bytes(b"mine")
    if left == "torn":
        part_of(path).write_bytes(b"a longer half of something")
    elif left == "link":
        part_of(path).symlink_to(photo)
    else:
        os.link(photo, part_of(path))
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert photo.read_bytes() == b"mine"
    assert sorted(tmp_path.iterdir()) == [path, photo]


def test_a_link_is_replaced_and_what_it_names_stays(tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(b"mine")
    (tmp_path / "file").symlink_to("photo")
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "photo").read_bytes() == b"mine"
    assert not (tmp_path / "file").is_symlink()


def _write_too_much(path: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    for write in (_by_protocol, _by_a_library):
        with pytest.raises(OSError, match="too large") as raised:
            write(path)
        assert f"'{path}'; make room" in about_os(raised.value)


def _by_protocol(path: Path) -> None:
    write_atomically(path, bytes(100_000))


def _by_a_library(path: Path) -> None:
    with made_aside(path) as part:
        try:
            part.write_bytes(bytes(100_000))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None


def test_a_disk_that_is_full_is_named_with_the_file_and_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    process = multiprocessing.get_context("fork").Process(target=_write_too_much, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_the_place_of_the_file_stays(tmp_path: Path) -> None:
    (tmp_path / "file" / "mine").mkdir(parents=True)
    with pytest.raises(OSError, match="directory") as raised:
        write_atomically(tmp_path / "file", b"new")
    assert f"'{tmp_path / 'file'}'; name a place" in about_os(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
