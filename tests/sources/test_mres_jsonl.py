"""MRES JSONL files: images beside them, bad lines that do not end the reading."""

import io
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from mres.errors import UserError
from mres.records import Expression, ImageRecord, RecordError, decode_masks
from mres.shards.check import check_record
from mres.shards.writer import WriteOptions, write_shards
from mres.sources.mres_jsonl import mres_jsonl


def image(size: tuple[int, int], colour: str = "black") -> bytes:
    with io.BytesIO() as buffer:
        Image.new("RGB", size, colour).save(buffer, "PNG")
        return buffer.getvalue()


INSIDE, OUTSIDE = image((2, 1)), image((2, 1), "red")


def line(id_: str, image: Any = "images/a.jpg", **fields: Any) -> str:
    target = {
        "id": "t",
        "granularity": "object",
        "category": "cat",
        "box": [0, 0, 1, 1],
        "mask": {"size": [1, 2], "counts": "02"},
        "expressions": ["the cat"],
    }
    value = {"id": id_, "image": image, "width": 2, "height": 1, "split": "train", "source": "s", "targets": [target]}
    return json.dumps({**value, **fields})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data/images").mkdir(parents=True)
    (tmp_path / "data/images/a.jpg").write_bytes(INSIDE)
    (tmp_path / "outside.jpg").write_bytes(OUTSIDE)
    return tmp_path / "data"


def write(folder: Path, *lines: str | bytes) -> Path:
    path = folder / "records.jsonl"
    path.write_bytes(b"\n".join(text if isinstance(text, bytes) else text.encode() for text in lines))
    return path


def test_good_lines_become_records(folder: Path) -> None:
    source = mres_jsonl(write(folder, line("a"), "", line("b", split="val")), split=None)
    assert len(source) == 2
    assert [(record.id, record.image) for record in source] == [("a", INSIDE), ("b", INSIDE)]


def test_a_split_is_taken_and_the_rest_counted(folder: Path) -> None:
    source = mres_jsonl(write(folder, line("a"), line("b", split="val"), line("c")), split="val")
    assert [record.id for record in source] == ["b"]
    assert source.notes == {"records of other splits than 'val', left out": 2}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "records.jsonl:2: not JSON"),
        (b'{"id": "\xff"}', "records.jsonl:2: not JSON"),
        ("[" * 100_000, "records.jsonl:2: not JSON"),
        ("[1]", "records.jsonl:2: expected a JSON object, found list"),
        (line("x", image="images/none.jpg"), "records.jsonl:2: record 'x': field 'image': .*none.jpg.*No such file"),
        (line("x", image=7), "field 'image': found 7"),
        (line("x", image="../outside.jpg"), "'../outside.jpg' leaves the folder"),
        (line("x", image="/etc/hostname"), "'/etc/hostname' leaves the folder"),
        (line("x", image="a\0b"), "field 'image'"),
        (line("x", width=3), "records.jsonl:2: record 'x', target 't': field 'mask.size'"),
    ],
)
def test_a_bad_line_is_named_and_does_not_end_the_reading(bad: str | bytes, message: str, folder: Path) -> None:
    first, error, last = mres_jsonl(write(folder, line("a"), bad, line("b")), split=None)
    assert isinstance(first, ImageRecord)
    assert isinstance(last, ImageRecord)
    assert isinstance(error, RecordError)
    with pytest.raises(RecordError, match=message):
        raise error


def test_paths_outside_are_read_if_allowed(folder: Path) -> None:
    path = write(folder, line("a", image="../outside.jpg"), line("b", image=str(folder / "images/a.jpg")))
    assert [record.image for record in mres_jsonl(path, split=None, allow_outside=True)] == [OUTSIDE, INSIDE]


def test_a_missing_or_empty_file_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="no records at"):
        mres_jsonl(folder / "nothing.jsonl", split=None)
    with pytest.raises(UserError, match="holds no record"):
        mres_jsonl(write(folder, "", " "), split=None)


def test_the_documented_example_is_valid(folder: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/data-format.md").read_text()
    example = json.loads(page.split("```json\n")[1].split("```")[0])
    (folder / example["image"]).write_bytes(image((example["width"], example["height"])))
    (record,) = mres_jsonl(write(folder, json.dumps(example)), split="train")
    assert isinstance(record, ImageRecord)
    for target in record.targets:
        encoded = {"size": [target.mask.height, target.mask.width], "counts": target.mask.counts}
        assert tuple(coco.toBbox(encoded)) == target.box


MASK_HW = np.zeros((6, 8), np.uint8)
MASK_HW[1:4, 2:6] = 1
CORNERS = [[2, 1], [6, 1], [6, 4], [2, 4]]
RUNS = [13, 3, 3, 3, 3, 3, 3, 3, 14]  # down the columns, zeros first


def record(**of_target: Any) -> dict[str, Any]:
    """A record of an image of 8 x 6 pixels, with one target."""
    target = {
        "id": "t",
        "granularity": "object",
        "category": "cat",
        "box": [2, 1, 4, 3],
        "mask": {"size": [6, 8], "counts": coco.encode(np.asfortranarray(MASK_HW))["counts"].decode()},
        "expressions": ["the cat"],
    }
    value = {"id": "r", "image": "a.png", "width": 8, "height": 6, "split": "train", "source": "s"}
    return {**value, "targets": [{**target, **of_target}]}


@pytest.mark.parametrize(
    "mask",
    [
        [[float(v) for corner in CORNERS for v in corner]],
        [v for corner in CORNERS for v in corner],
        CORNERS,
        [CORNERS],
        [CORNERS, [1.0, 1.0, 2.0, 2.0], [90, 1, 99, 1, 99, 9]],
        {"size": [6, 8], "counts": RUNS},
        "mask.png",
    ],
)
def test_masks_are_converted_from_what_people_have(mask: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image((8, 6)))
    Image.fromarray(MASK_HW * 255).save(tmp_path / "mask.png")
    (found,) = mres_jsonl(write(tmp_path, json.dumps(record(mask=mask, box=None))), split=None)
    assert isinstance(found, ImageRecord)
    (target,) = found.targets
    assert (decode_masks([target.mask])[0] == MASK_HW).all()
    assert target.box == (2, 1, 4, 3)
    check_record(found, "here")


@pytest.mark.parametrize(
    "mask", [None, [], "", {}, [[]], {"size": [6, 8], "counts": ""}, {"size": [6, 8], "counts": []}]
)
def test_every_spelling_of_no_mask_is_an_empty_one(mask: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image((8, 6)))
    (found,) = mres_jsonl(write(tmp_path, json.dumps(record(mask=mask, no_target=True, category=""))), split=None)
    assert isinstance(found, ImageRecord)
    assert found.targets[0].mask.is_empty
    assert found.targets[0].no_target


def test_empty_masks_are_warned_of_in_a_build_and_refused_above_a_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(image((8, 6)))
    lines = [json.dumps({**record(**fields), "id": str(i)}) for i, fields in enumerate(({}, {"mask": None}, {}))]
    write_shards(mres_jsonl(write(tmp_path, *lines), split=None), tmp_path / "out")
    assert "warning: 1 of 3 masks have no pixel" in capsys.readouterr().err
    with pytest.raises(UserError, match="2 of 3 masks have no pixel"):
        write_shards(
            mres_jsonl(write(tmp_path, *lines[:2], lines[1].replace('"1"', '"x"')), split=None), tmp_path / "no"
        )


def test_the_ids_of_a_source_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image((8, 6)))
    sentence = {"text": "the cat", "sent_id": 5, "sent_index": 1}
    value = record(ref_id=7, ann_id=[1, "b"], expressions=[sentence])
    (found,) = mres_jsonl(write(tmp_path, json.dumps(value)), split=None)
    assert isinstance(found, ImageRecord)
    (target,) = found.targets
    assert (target.ref_id, target.ann_id) == (7, (1, "b"))
    assert target.expressions == (Expression("the cat", "", 5, 1),)


def test_a_split_that_is_not_there_is_answered_with_those_that_are(folder: Path) -> None:
    path = write(folder, line("a"), line("b"), line("c", split="val"), "{broken")
    with pytest.raises(
        UserError, match=r"split 'vall' \(--split\); its splits: train \(2\), val \(1\); did you mean 'val'"
    ):
        mres_jsonl(path, split="vall")


def test_an_id_that_occurs_twice_is_named_with_both_lines(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image((8, 6)))
    path = write(tmp_path, json.dumps({**record(), "id": "x"}), "", json.dumps(record()), json.dumps(record()))
    with pytest.raises(
        UserError, match=r"records\.jsonl:4: record 'r': its id occurs twice, before at .*records\.jsonl:3;"
    ):
        write_shards(mres_jsonl(path, split=None), tmp_path / "out")


BIG = 10**400
HOSTILE: dict[str, Any] = {
    "box of 400 digits": record(box=[BIG, 1, 1, 1]),
    "box of 5000 digits": json.dumps(record()).replace('"box": [2', '"box": [' + "1" * 5000),
    "infinite box": json.dumps(record()).replace('"box": [2', '"box": [1e999'),
    "NaN box": record(box=[float("nan"), 1, 1, 1]),
    "size of 400 digits": {**record(), "width": BIG, "height": BIG},
    "size of 1e9": {**record(), "width": 10**9, "height": 10**9},
    "size true": {**record(), "width": True},
    "size 8.0": {**record(), "width": 8.0},
    "runs beyond 2^32": record(mask={"size": [6, 8], "counts": "ooooooO" * 8}),
    "runs beyond 2^32 in a list": record(mask={"size": [6, 8], "counts": [2**32, 48 - 2**32]}),
    "runs of 2^32 + 48": record(mask={"size": [6, 8], "counts": [2**32 + 48]}),
    "runs of 400 digits": record(mask={"size": [6, 8], "counts": [BIG]}),
    "infinite runs": json.dumps(record(mask={"size": [6, 8], "counts": [48]})).replace("[48]", "[1e999]"),
    "runs with an accent": record(mask={"size": [6, 8], "counts": "é"}),
    "runs too short": record(mask={"size": [6, 8], "counts": "1"}),
    "a polygon of 400 digits": record(mask=[[BIG, 1, 5, 1, 5, 5]]),
    "a polygon of text": record(mask=[["1", 1, 5, 1, 5, 5]]),
    "a polygon of NaN": record(mask=[[float("nan"), 1, 5, 1, 5, 5]]),
    "a mask that is a number": record(mask=7),
    "a mask file that is not there": record(mask="none.png"),
    "a mask file outside": record(mask="../a.png"),
    "a mask file of another size": record(mask="large.png"),
    "a mask file with a long name": record(mask="m" * 5000),
    "a mask file that is half a character": record(mask="\ud800"),
    "half a character in an expression": record(expressions=["the \ud800 cat"]),
    "half a character in a category": record(category="\ud800"),
    "half a character in a kind": record(expressions=[{"text": "a", "kind": "\udfff"}]),
    "half a character in an id": {**record(), "id": "\ud800"},
    "half a character in a target's id": record(id="\ud800"),
    "half a character in a parent": record(parent="\ud800"),
    "half a character in a split": {**record(), "split": "\ud800"},
    "half a character in an image": {**record(), "image": "\ud800.png"},
    "half a character in a field": {**record(), "\ud800": 1},
    "a long image name": {**record(), "image": "n" * 5000},
    "an image name with a zero": {**record(), "image": "a\0b"},
    "an image that is a folder": {**record(), "image": "."},
    "an image that is a pipe": {**record(), "image": "pipe"},
    "deep": '{"id":' + "[" * 100_000 + "]" * 100_000 + "}",
    "deep in a box": json.dumps(record()).replace("[2, 1, 4, 3]", "[" * 900 + "]" * 900),
    "deep in a mask": json.dumps(record(mask=0)).replace('"mask": 0', '"mask": ' + "[" * 900 + "]" * 900),
    "deeper in a mask": record(mask=[[[[[[1]]]]]]),
    "an id of a list": {**record(), "id": ["a"]},
    "a granularity of a list": record(granularity=["object"]),
    "no_target with pixels": record(no_target=True),
    "a ref_id of 400 digits": record(ref_id=BIG),
    "a target of null": {**record(), "targets": [None]},
    "too many targets": {**record(), "targets": [{}] * 10_001},
    "not UTF-8": b"\xff\xfe{}",
    "a number": "5",
}


def test_no_record_ends_a_build_that_has_a_budget(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image((8, 6)))
    (tmp_path / "large.png").write_bytes(image((9, 6)))
    os.mkfifo(tmp_path / "pipe")
    bad = [value if isinstance(value, str | bytes) else json.dumps(value) for value in HOSTILE.values()]
    good = [json.dumps({**record(), "id": name}) for name in ("first", "last")]
    path = write(tmp_path, good[0], *bad, good[1])
    counts = write_shards(mres_jsonl(path, split=None), tmp_path / "out", WriteOptions(max_bad_fraction=0.99)).counts
    listed = [json.loads(line)["error"] for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    named = [re.search(r"records\.jsonl:(\d+)", error) for error in listed]
    lines = {int(found[1]) for found in named if found}
    missed = [name for number, name in enumerate(HOSTILE, start=2) if number not in lines]
    assert missed == []
    assert max(map(len, listed)) < 2000 + len(str(tmp_path))
    assert (counts.images, counts.quarantined) == (2, len(HOSTILE))
