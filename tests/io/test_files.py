"""A user's files: what is none of bytes is refused before it is read."""

import os
from pathlib import Path

import pytest

from mres.io.files import read_regular
from mres.io.json_files import JsonError, read_json, read_jsonl


def test_what_is_no_file_of_bytes_is_refused_by_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    (tmp_path / "giant").touch()
    os.truncate(tmp_path / "giant", 8 << 30)
    said = {
        "pipe": "a pipe",
        "zero": "a device",
        "folder": "a folder",
        "giant": "8,589,934,592 bytes",
        "none": "No such",
    }
    for name, why in said.items():
        with pytest.raises(OSError, match=why):
            read_regular(tmp_path / name, 1 << 20)
    for name in ("a\0b", "a\ud800b"):
        with pytest.raises(OSError, match="no file can be called so"):
            read_regular(tmp_path / name, 1 << 20)


def test_json_is_read_of_files_only(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(JsonError, match="pipe' cannot be read: it is a pipe"):
        read_json(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is a pipe"):
        list(read_jsonl(tmp_path / "pipe"))
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"[1]")
    assert read_json(tmp_path / "link") == [1]
