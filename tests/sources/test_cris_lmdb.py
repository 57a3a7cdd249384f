"""CRIS's LMDB in both serialisations, the genuine bytes of `pyarrow.serialize` among them, and damaged ones."""

import argparse
import contextlib
import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_cris import genuine, jpeg, pixels, png, rectangle, value, write_lmdb

from mres.errors import UserError
from mres.records import ImageRecord, RecordError
from mres.sources import registry
from mres.sources.cris_lmdb import cris_lmdb
from mres.sources.legacy_arrow import is_legacy_arrow, loads

pytest.importorskip("lmdb")

A, B = "COCO_train2014_000000000009.jpg", "COCO_train2014_000000000025.jpg"


def pickled(*values: Any, keys: list[str] | None = None, **special: Any) -> dict[str, bytes]:
    """The content of an LMDB as CRIS's writer at its last commit makes it."""
    names = [str(number) for number in range(len(values))]
    contents = {
        **dict(zip(names, values, strict=True)),
        "__keys__": [name.encode() for name in (names if keys is None else keys)],
        "__len__": len(values),
        **special,
    }
    return {key: pickle.dumps(content, protocol=5) for key, content in contents.items() if content is not None}


def test_the_values_of_pyarrow_are_read(tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "refcoco/train.lmdb", genuine("lmdb"))
    parser = argparse.ArgumentParser()
    module = registry.SOURCES["cris-lmdb"]
    module.add_arguments(parser)
    source = module.open(parser.parse_args([f"--lmdb={path}"]))
    first, second = source
    assert (first.id, first.width, first.height, first.split) == (Path(A).stem, 12, 8, "train")
    assert first.source == "refcoco (cris)"
    assert [(t.id, t.category, [e.text for e in t.expressions]) for t in first.targets] == [
        ("100", "dog", ["left dog", "the dog’s bed"]),
        ("102", "dog", ["right dog"]),
    ]
    assert (pixels(first.targets[0].mask) == rectangle((1, 1, 5, 4))).all()
    assert (pixels(first.targets[1].mask) == rectangle((6, 2, 11, 8))).all()
    assert [t.id for t in second.targets] == ["101"]
    assert str(tmp_path) not in json.dumps(source.description)
    assert not source.notes


def test_both_serialisations_give_the_same(tmp_path: Path) -> None:
    legacy = genuine("lmdb")
    again = {key: pickle.dumps(loads(content), protocol=5) for key, content in legacy.items()}
    sources = [cris_lmdb(write_lmdb(tmp_path / f"{n}/val.lmdb", c), split="val") for n, c in enumerate((legacy, again))]
    assert [record.targets for record in sources[0]] == [record.targets for record in sources[1]]


def test_detris_names_one_key_too_many(tmp_path: Path) -> None:
    values = [value(A, "refcoco_1", "one"), value(B, "refcoco+_1", "two")]
    contents = pickled(*values, keys=["0", "1", "2"], __len__=3)
    source = cris_lmdb(write_lmdb(tmp_path / "mixed/train.lmdb", contents))
    assert [target.id for record in source for target in record.targets] == ["refcoco_1", "refcoco+_1"]
    assert source.notes == {"keys that '__keys__' names beyond the last value": 1}


@pytest.mark.parametrize("special", [{"__keys__": None}, {"__len__": None}])
def test_one_of_keys_and_length_is_enough(special: dict[str, Any], tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "train.lmdb", pickled(value(A, 1, "one"), value(B, 2, "two"), **special))
    assert len(cris_lmdb(path)) == 2


def test_an_lmdb_that_is_a_folder_is_read(tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "train.lmdb", pickled(value(A, 1, "one")), subdir=True)
    assert len(list(cris_lmdb(path))) == 1


def test_records_are_made_in_forked_processes(tmp_path: Path) -> None:
    source = cris_lmdb(write_lmdb(tmp_path / "train.lmdb", pickled(value(A, 1, "one"), value(B, 2, "two"))))
    assert isinstance(source[0], ImageRecord)
    if not (child := os.fork()):
        os._exit(0 if source[1].id == Path(B).stem else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    values = [value(A, 1, "one"), value(A, 1, "again"), value(A, 2, "two", mask=png(None)), value(B, 3)]
    contents = pickled(*values, **{"9": value(B, 9, "not named")})
    source = cris_lmdb(write_lmdb(tmp_path / "train.lmdb", contents))
    (record,) = source
    assert [(t.id, len(t.expressions)) for t in record.targets] == [("1", 2)]
    assert source.notes == {
        "values that '__keys__' does not name, left out": 1,
        "entries without expressions, left out": 1,
        "entries of a segment that had one already, merged": 1,
        "masks that cover no pixel, left out": 1,
    }


class Custom:
    def __reduce__(self) -> Any:
        return os.system, ("false",)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cat": 80}, "field 'cat': found 80"),
        ({"seg_id": 1.5}, "field 'seg_id': found 1.5"),
        ({"img_name": "../x.jpg"}, "leaves the folder"),
        ({"img": None}, "field 'img': found NoneType, expected the bytes of a picture"),
        ({"mask": "png"}, "field 'mask': found str"),
        ({"sents": ["ok", b"bytes"]}, "field 'sents': found"),
        ({"num_sents": 2}, "field 'num_sents': found 2, but 1 sentences are listed"),
        ({"extra": Custom()}, "not a pickle of plain values"),
    ],
)
def test_a_bad_value_is_named_and_comes_first(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    contents = pickled(value(A, 1, "one"), {**value(B, 2, "two"), **fields})
    error, good = cris_lmdb(write_lmdb(tmp_path / "train.lmdb", contents))
    assert isinstance(good, ImageRecord)
    assert isinstance(error, RecordError)
    with pytest.raises(RecordError, match="train.lmdb: key '1'.*" + message):
        raise error


@pytest.mark.parametrize("name", [*genuine("refused"), "damaged", "list"])
def test_a_value_that_is_not_plain_is_named(name: str, tmp_path: Path) -> None:
    contents = genuine("lmdb")
    others = {"damaged": contents["1"][:-1500], "list": genuine("plain")["keys"]}
    contents["1"] = (others | genuine("refused"))[name]
    error, good = cris_lmdb(write_lmdb(tmp_path / "train.lmdb", contents))
    assert isinstance(good, ImageRecord)
    assert isinstance(error, RecordError)
    assert "train.lmdb: key '1': " in str(error)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([value(A, 1, "one"), value(A, 2, "two", img=jpeg(250))], "carry different images under this name"),
        ([value(A, 1, "one"), value(A, 1, "two", mask=png((0, 0, 2, 2)))], "the segment id '1' stands for two"),
        ([value(A, 1, "one", mask=b"no")], "key '0': the mask is a text"),
        ([value(A, 1, "one", img=b"no")], "the image is a text \\('no'\\)"),
    ],
)
def test_values_that_contradict_each_other_are_named(values: list[Any], message: str, tmp_path: Path) -> None:
    (error,) = cris_lmdb(write_lmdb(tmp_path / "train.lmdb", pickled(*values)))
    assert isinstance(error, RecordError)
    with pytest.raises(RecordError, match=message):
        raise error


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (pickled(__keys__=None, __len__=None, a=1), "not of CRIS's form: .* among 1 values; was it written to its end"),
        (pickled(value(A, 1, "one"), keys=["0", "x", "y"]), "2 of the 3 keys in '__keys__' have no value|1 of the 3"),
        (pickled(value(A, 1, "one"), __len__=7), "'__len__' is 7, but it has 1 values"),
        (pickled(value(A, 1, "one"), __keys__=["0"]), "not of CRIS's form"),
        (pickled(), "'__len__' is 0, but it has 0 values"),
        ({**pickled(value(A, 1, "one")), "__keys__": b"\x80\x05"}, "key '__keys__'"),
    ],
)
def test_what_is_not_of_the_form_is_refused(contents: dict[str, bytes], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        cris_lmdb(write_lmdb(tmp_path / "train.lmdb", contents))


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lmdb(tmp_path / "train.lmdb", pickled(value(A, 1, "one")))
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(UserError, match=r"needs the package lmdb: .*\[lmdb\]"):
        cris_lmdb(path)


def test_what_is_no_lmdb_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no LMDB at '.*none.lmdb' \(--lmdb\)"):
        cris_lmdb(tmp_path / "none.lmdb")
    path = tmp_path / "other.lmdb"
    path.write_bytes(b"hello" * 5000)
    with pytest.raises(UserError, match=r"cannot read '.*other.lmdb' as an LMDB"):
        cris_lmdb(path)


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_a_file_that_is_cut_off_is_refused(kept: float, tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "train.lmdb", pickled(*[value(A, n, "one", img=jpeg() * 20) for n in range(9)]))
    os.truncate(path, int(path.stat().st_size * kept))
    with pytest.raises(UserError, match=r"'.*train.lmdb' is cut off: it has \d+ bytes of \d+"):
        cris_lmdb(path)


def test_every_plain_value_of_pyarrow_is_read() -> None:
    found = {name: loads(content) for name, content in genuine("plain").items()}
    assert found == {
        "nested": {"a": {"b": [1, [-2, ["x", (True, 2.5)], None]]}, "empty": [], "none": {}},
        "keys": [str(number).encode() for number in range(300)],
        "text": "Größe",
        "long": 2**62,
        "bytes": bytes(5000),
    }
    assert all(is_legacy_arrow(content) for content in genuine("plain").values())
    assert not is_legacy_arrow(pickle.dumps({}, protocol=5))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("array", "it carries arrays, tensors or buffers"),
        ("buffer", "it carries arrays, tensors or buffers"),
        ("set", "a value of type number '13', expected plain values"),
        ("half", "a value of type number '6', expected plain values"),
        ("pickle", "it holds an object of a class"),
        ("integer", "it holds an object of a class"),
    ],
)
def test_what_is_not_plain_in_pyarrows_values_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loads(genuine("refused")[name])


@given(
    name=st.sampled_from(["nested", "text", "keys"]),
    edits=st.lists(st.tuples(st.integers(16, 4300), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4),
    kept=st.one_of(st.none(), st.integers(0, 4300)),
)
def test_damaged_values_of_pyarrow_end_in_a_value_error(name: str, edits: list[Any], kept: int | None) -> None:
    content = bytearray(genuine("plain")[name])
    for place, piece in edits:
        place %= len(content) - 8
        content[place : place + len(piece)] = piece
    with contextlib.suppress(ValueError):
        loads(bytes(content[:kept]))


def test_texts_that_repeat_each_other_are_bounded() -> None:
    """All 300 items made one text as long as all were together."""
    content = bytearray(genuine("plain")["keys"])
    places = content.index(b"".join(number.to_bytes(4, "little") for number in range(300)))
    content[places : places + 4 * 300] = bytes(4 * 300)
    first_text = content.index(b"".join(number.to_bytes(4, "little") for number in range(5)))
    content[first_text + 4 : first_text + 8] = (790).to_bytes(4, "little")
    with pytest.raises(ValueError, match="it unpacks to more than its own size"):
        loads(bytes(content))
