"""Logs: whole entries, whatever a kill or a full disk has left of one, and patience with a disk that is full."""

import multiprocessing
import resource
from pathlib import Path

import pytest

from mres.io.append_log import AppendLog


def test_what_is_left_of_an_entry_goes_and_is_said(tmp_path: Path) -> None:
    path, said = tmp_path / "log", list[str]()
    path.write_bytes(b"one\ntw")
    log = AppendLog(path, said.append, separator=b"\n")
    log.add(b"three\n")
    assert path.read_bytes() == b"one\nthree\n"
    assert len(said) == 1
    assert f"'{path}' was cut off" in said[0]


def limited(num_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))


def _impatient(path: Path) -> None:
    log = AppendLog(path, print)
    log.add(b"x" * 900)
    limited(1000)
    with pytest.raises(OSError, match="too large") as raised:
        log.add(b"y" * 900)
    assert raised.value.filename == str(path)
    assert path.read_bytes() == b"x" * 900, "no half of it"
    limited(10_000)
    log.add(b"z")
    assert path.read_bytes() == b"x" * 900 + b"z"


def _patient(path: Path) -> None:
    said: list[str] = []
    log = AppendLog(path, said.append, separator=b"\n", patient=True)
    limited(5)
    for n in range(10):
        log.add(b"%d\n" % n)
    assert path.read_bytes() == b"0\n1\n"
    assert len(said) == 1, "once, not with every entry"
    assert "File too large" in said[0]
    log.forget(lambda entry: int(entry) < 8)
    limited(10_000)
    log.add(b"10\n")
    assert path.read_bytes() == b"".join(b"%d\n" % n for n in (*range(8), 10))
    assert "takes entries again" in said[1]
    limited(1)
    log.add(b"11\n")
    log.flush(last=True)
    assert "1 entries of" in said[3]
    assert "are lost" in said[3]


@pytest.mark.parametrize("course", [_impatient, _patient])
def test_a_full_disk(course: object, tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=course, args=(tmp_path / "log",))
    process.start()
    process.join()
    assert process.exitcode == 0
