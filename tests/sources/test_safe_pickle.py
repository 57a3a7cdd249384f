"""Pickles of plain values: all that Python 2 and 3 write of them is read, and nothing in any file is run."""

import contextlib
import datetime
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_refer import Long, Python2Pickler, Unicode

from mres.errors import UserError
from mres.records import RecordError
from mres.sources import safe_pickle
from mres.sources.safe_pickle import load_plain, loads_plain


def plain_values(scalars: st.SearchStrategy[Any], *, sets: bool = False) -> st.SearchStrategy[Any]:
    keys = st.text() | st.integers() | st.tuples(st.integers(), st.text())

    def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        found = st.lists(inner) | st.dictionaries(keys, inner) | st.lists(inner, max_size=5).map(tuple)
        return found | st.sets(keys) | st.frozensets(keys) if sets else found

    return st.recursive(scalars, containers, max_leaves=20)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
PYTHON_2 = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.integers().map(Long)
    | st.floats(allow_nan=False)
    | st.text(st.characters(max_codepoint=255)).map(str)
    | st.text().map(Unicode)
)


def python_2_keys(value: Any) -> Any:
    """Python 2 writes what it has: keys that are no latin-1 text are its `unicode`."""
    if isinstance(value, dict):
        return {
            Unicode(k) if isinstance(k, str) else k: python_2_keys(v) for k, v in value.items() if type(k) in (str, int)
        }
    return type(value)(map(python_2_keys, value)) if isinstance(value, list | tuple) else value


@given(st.data(), st.integers(0, 5))
def test_what_python_3_writes_comes_back(data: st.DataObject, protocol: int) -> None:
    scalars = SCALARS | st.binary() if protocol >= 3 else SCALARS
    value = data.draw(plain_values(scalars, sets=protocol >= 4))
    found = loads_plain(pickle.dumps(value, protocol), "here")
    assert found == value
    assert repr(found) == repr(pickle.loads(pickle.dumps(value, protocol)))  # types too: True is not 1, () is not []


@given(plain_values(PYTHON_2).map(python_2_keys), st.integers(0, 2))
def test_what_python_2_writes_comes_back(value: Any, protocol: int) -> None:
    content = Python2Pickler(protocol).dumps(value)
    assert pickle.loads(content, encoding="latin-1") == value  # the made pickle is a genuine one
    assert loads_plain(content, "here") == value


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"(lp0\n(dp1\nS'raw'\np2\nS'caf\\xe9'\np3\nsS'id'\np4\nL5L\nsa.", [{"raw": "café", "id": 5}]),
        (b'(dp0\nS"it\'s"\np1\nI01\nsVna\\u00efve \\u4e2d\np2\nF0.5\ns.', {"it's": True, "naïve 中": 0.5}),
        (b"V\\ud83d\\ude00\np0\n.", "\N{GRINNING FACE}"),  # of a narrow build
        (b"}q\x00(U\x03rawq\x01U\x04caf\xe9q\x02h\x01K\x05u.", {"raw": 5}),
        (b"]q\x00(T\x03\x00\x00\x00abcq\x01h\x01e.", ["abc", "abc"]),
        (b"\x80\x02]q\x00(\x8a\x05\x00\x00\x00\x00\x01\x88N\x87q\x01K\x01\x85q\x02e.", [(2**32, True, None), (1,)]),
        (b"\x80\x02(K\x01X\x02\x00\x00\x00\xc3\xa9\x89t.", (1, "é", False)),
        (b"\x80\x02J\xff\xff\xff\xff.", -1),
        (b"\x80\x02\x8a\x00.", 0),
        (b"]r\xff\xff\xff\xff.", []),  # a memo of four thousand million places costs nothing
    ],
)
def test_streams_of_python_2(content: bytes, value: Any) -> None:
    assert loads_plain(content, "here") == value


class Commands:
    """Unpickled freely, it runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(6))
def test_code_is_named_and_not_run(protocol: int, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    content = pickle.dumps([{"sent": "the dog"}, {"sent": Commands(f"touch '{mark}'")}], protocol)
    pickle.loads(content)
    assert mark.exists()  # the pickle does run where it is unpickled
    mark.unlink()
    path = tmp_path / "refs(unc).p"
    path.write_bytes(content)
    with pytest.raises(
        UserError, match=r"refs\(unc\).p': not a pickle of plain values: it wants '(posix|nt).system'"
    ) as info:
        load_plain(path)
    assert "nothing in it was imported or run" in str(info.value)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"(S'touch MARK'\nios\nsystem\n.", "os.system"),  # INST
        (b"(cos\nsystem\nS'touch MARK'\no.", "os.system"),  # OBJ
        (b"cos\nsystem\n(S'touch MARK'\ntR.", "os.system"),  # REDUCE
        (b'c__builtin__\neval\n(S\'open("MARK", "w")\'\ntR.', "__builtin__.eval"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0atouch MARK\x85R.", "os.system"),  # STACK_GLOBAL
        (b"\x80\x02ccopy_reg\n_reconstructor\n(c__main__\nX\nN)R}b.", "copy_reg._reconstructor"),
        (b"cno.such.module\nthing\n.", "no.such.module.thing"),  # not even imported
        (b"))R.", "the opcode REDUCE"),
        (b"(]o.", "the opcode OBJ"),
        (b"}}b.", "the opcode BUILD"),
        (b"\x80\x02))\x81.", "the opcode NEWOBJ"),
        (b"\x80\x04))}\x92.", "the opcode NEWOBJ_EX"),
        (b"\x80\x02\x82\x01.", "the opcode EXT1"),
        (b"\x80\x02\x83\x01\x00.", "the opcode EXT2"),
        (b"\x80\x02\x84\x01\x00\x00\x00.", "the opcode EXT4"),
        (b"Pid\n.", "the opcode PERSID"),
        (b"NQ.", "the opcode BINPERSID"),
        (b"\x80\x05\x97.", "the opcode NEXT_BUFFER"),
        (b"NN0.", "the opcode POP"),
        (pickle.dumps({1}, 2), "__builtin__.set"),
        (pickle.dumps(datetime.date(2020, 1, 1), 4), "datetime.date"),
        (pickle.dumps(bytearray(b"x"), 5), "the opcode BYTEARRAY8"),
    ],
)
def test_every_way_to_code_is_refused(content: bytes, wanted: str, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for place in (content, b"]" + content[:-1] + b"a."):
        with pytest.raises(RecordError, match=f"^here: not a pickle of plain values: it wants '{wanted}' at byte "):
            loads_plain(place.replace(b"MARK", str(mark).encode()), "here")
    assert not mark.exists()


SAMPLE = [{"raw": "café", "ids": [1, 2**40], "box": (1.5, None)}, "naïve 中"]


@pytest.mark.parametrize("protocol", range(6))
def test_a_truncated_pickle_is_damaged(protocol: int) -> None:
    content = pickle.dumps(SAMPLE, protocol)
    for length in range(len(content)):
        with pytest.raises(RecordError, match=r"^here: (no whole pickle: damaged at or before byte|not a pickle)"):
            loads_plain(content[:length], "here")
    with pytest.raises(RecordError, match="something follows it"):
        loads_plain(content + b"\n", "here")


@given(st.binary(max_size=60) | st.tuples(st.integers(0, 5), st.integers(0, 200), st.binary(max_size=4)))
def test_any_bytes_are_a_value_or_refused(damage: Any) -> None:
    content = damage
    if isinstance(damage, tuple):
        protocol, place, inserted = damage
        content = pickle.dumps(SAMPLE, protocol)
        content = content[:place] + inserted + content[place + 1 :]
    with contextlib.suppress(RecordError):  # and no other exception
        loads_plain(content, "here")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "byte 0x76 at byte 0 is no opcode"),
        (b"<html>404</html>", "byte 0x3c at byte 0 is no opcode"),
        (b"\x80\x09N.", "protocol 9, known are 0 to 5"),
        (b"X\xff\xff\xff\x7fabc.", "it ends in the middle"),
        (b"\x80\x04\x8e" + b"\xff" * 8 + b".", "damaged"),
        (b"T\xff\xff\xff\xffabc.", "it ends in the middle"),
        (b"I5x\n.", "damaged"),
        (b"S'abc\n.", "a string without quotes"),
        (b"\x80\x02X\x01\x00\x00\x00\xff.", "damaged"),
        (b"Ia.", "damaged"),
        (b"(Nd.", "damaged"),
        (b"NNa.", "found NoneType in place of a list"),
        (b"]NNs.", "found list in place of a dict"),
        (b"}]Ns.", "found a nested list as a key"),
        (b"h\x07.", "damaged"),
        (b"t.", "damaged"),
        (b"((.", "more than one value"),
        (b"NN.", "more than one value"),
        (b"\x80\x02\x86.", "a value is missing"),
    ],
)
def test_what_is_no_pickle_is_said(content: bytes, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        loads_plain(content, "here")


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_nesting_is_bounded() -> None:
    assert loads_plain(pickle.dumps(nested(50), 2), "here") == nested(50)
    with pytest.raises(RecordError, match="nested deeper than 50"):
        loads_plain(pickle.dumps(nested(51), 2), "here")
    with pytest.raises(RecordError, match="nested deeper than 50"):
        loads_plain(b"]" * 200_000 + b"a" * 199_999 + b".", "here")
    itself: list[Any] = []
    itself.append(itself)
    with pytest.raises(RecordError, match="nested deeper than 50"):
        loads_plain(pickle.dumps(itself, 2), "here")


def test_bombs_do_not_go_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keys = b"})" + b"\x85" * 200_000 + b"Ns."  # hashing such a key would overflow the stack
    with pytest.raises(RecordError, match="found a nested tuple as a key"):
        loads_plain(keys, "here")
    laughs: list[Any] = []
    for _ in range(12):
        laughs = [laughs] * 10
    monkeypatch.setattr(safe_pickle, "_MAX_CONTAINERS", 10_000)
    with pytest.raises(RecordError, match="more than 10000 containers"):
        loads_plain(pickle.dumps(laughs, 2), "here")
    monkeypatch.setattr(safe_pickle, "_MAX_OPCODES", 1000)
    with pytest.raises(RecordError, match="more than 1000 opcodes"):
        loads_plain(pickle.dumps([0] * 1000), "here")
    path = tmp_path / "large.p"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match=r"large.p': it has 1,099,511,627,776 bytes; .*at most 536,870,912"):
        load_plain(path)


def test_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "refs(umd).p"
    with pytest.raises(UserError, match=r"cannot read '.*refs\(umd\).p': No such file"):
        load_plain(path)
    path.write_bytes(struct.pack("<I", 7))
    with pytest.raises(UserError, match=r"refs\(umd\).p': no whole pickle"):
        load_plain(path)
    path.write_bytes(pickle.dumps(SAMPLE, 0))
    assert load_plain(path) == SAMPLE
