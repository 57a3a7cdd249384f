"""JSON that others may have written: what it says, or which file, and which line, does not say it."""

import hashlib
from pathlib import Path

import pytest

from mres.io.json_files import JsonError, read_json, read_json_table, read_jsonl


def _file(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    return path


def test_a_value_comes_with_the_hash_of_the_bytes_that_it_was_read_from(tmp_path: Path) -> None:
    content = '{"a": [1, "é"]}'.encode()
    path = _file(tmp_path, content)
    assert read_json(path) == {"a": [1, "é"]}
    assert read_json_table(path) == ({"a": [1, "é"]}, hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b"[" * 100_000, b"{}" + b" " * 100])
def test_what_is_damaged_nested_for_ever_or_too_large_names_its_file(tmp_path: Path, content: bytes) -> None:
    path = _file(tmp_path, content)
    with pytest.raises(JsonError, match=str(path)):
        read_json(path, max_bytes=100 if content.startswith(b"{}") else 1 << 20)


def test_what_is_not_there_is_told_from_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "nothing.json")
    with pytest.raises(JsonError, match=str(tmp_path)):
        read_json(tmp_path)


def test_lines_name_their_number_and_a_cut_off_last_one_may_be_let_go(tmp_path: Path) -> None:
    path = _file(tmp_path, b'{"step": 1}\n\n{"step": 2}\n{"st')
    assert [value["step"] for _, value in read_jsonl(path, may_be_cut=True)] == [1, 2]
    with pytest.raises(JsonError, match=f"{path}:4"):
        list(read_jsonl(path))
    path = _file(tmp_path, b'{"step": 1}\n[2]\n{"step": 3}\n')
    with pytest.raises(JsonError, match=f"{path}:2.*list"):
        list(read_jsonl(path, may_be_cut=True))


@pytest.mark.parametrize("content", [b'{"a": 1, "b": 2, "a": 1}', b'[{"c": [{"a": 1, "a": {}}]}]'])
def test_a_key_that_is_written_twice_is_named(tmp_path: Path, content: bytes) -> None:
    path = _file(tmp_path, content)
    with pytest.raises(JsonError, match=f"{path}.*'a'"):
        read_json(path)
