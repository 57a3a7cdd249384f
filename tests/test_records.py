"""The record's JSON form: what is written is read back, and what breaks the format is named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from mres.record_checks import record_from_json
from mres.record_json import record_as_written, record_to_json
from mres.records import Expression, ImageRecord, RecordError, Rle, Target, expression_id

sides = st.integers(1, 40)
masks = st.tuples(sides, sides).flatmap(lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 1)))


def encode(mask_HW: np.ndarray) -> Rle:
    return Rle(*mask_HW.shape, coco.encode(np.asfortranarray(mask_HW))["counts"])


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
phrases = texts.filter(str.strip)
source_ids = st.integers(-(2**63), 2**63 - 1) | texts
expressions = st.builds(Expression, phrases, texts, st.none() | source_ids, st.none() | st.integers(0, 2**63 - 1))
boxes = st.tuples(*[st.floats(-1e6, 1e6)] * 4)


@st.composite
def records(draw: st.DrawFn) -> ImageRecord:
    height, width = draw(sides), draw(sides)
    ids = draw(st.lists(texts, min_size=1, max_size=4, unique=True))
    targets = tuple(
        Target(
            id=id_,
            granularity=draw(st.sampled_from(["object", "part"])),
            category=draw(texts),
            mask=encode(draw(arrays(np.uint8, (height, width), elements=st.integers(0, 1)))),
            box=draw(boxes),
            expressions=tuple(draw(st.lists(expressions, min_size=1, max_size=3))),
            parent=draw(st.none() | st.sampled_from(ids)),
            ref_id=draw(st.none() | source_ids),
            ann_id=draw(st.none() | source_ids | st.lists(source_ids, max_size=3).map(tuple)),
        )
        for id_ in ids
    )
    return ImageRecord(draw(texts), b"image", width, height, draw(texts), draw(texts), targets)


@given(records())
def test_a_record_survives_its_json_form(record: ImageRecord) -> None:
    text = json.dumps(record_to_json(record, "a.jpg"), ensure_ascii=False)
    assert record_from_json(json.loads(text), record.image, "here") == record
    assert record_as_written(json.loads(text), record.image, "here") == record
    pairs = list(record.pairs())
    assert len(pairs) == record.num_expressions
    assert len({(id(target), index) for target, index in pairs}) == len(pairs)


def test_ids_of_the_source_and_no_target_are_written_only_where_they_are() -> None:
    plain = record_from_json(valid(), b"", "here")
    (target,) = record_to_json(plain, "a.jpg")["targets"]
    assert list(target) == ["id", "granularity", "category", "parent", "box", "mask", "expressions"]
    assert target["expressions"] == [{"text": "the wheel", "kind": ""}]
    empty = {"size": [4, 3], "counts": encode(np.zeros((4, 3), np.uint8)).counts.decode()}
    given = {"category": "", "mask": empty, "no_target": True, "ref_id": 3, "ann_id": [-1]}
    sentence = {"text": "a bus", "kind": "", "sent_id": "s9", "sent_index": 2}
    value = valid()
    value["targets"][0] |= {**given, "expressions": [sentence]}
    (target,) = record_to_json(record_from_json(value, b"", "here"), "a.jpg")["targets"]
    assert {name: target[name] for name in given} == {**given, "ann_id": (-1,)}
    assert target["expressions"] == [sentence]


def test_sets_of_grefcoco_from_before_there_was_a_field_still_say_that_nothing_is_meant() -> None:
    value = valid()
    value["targets"][0] |= {"parent": None, "category": "no-target", "box": [0.0] * 4}
    value["targets"][0]["expressions"] = [{"text": "a", "kind": ""}]
    assert record_as_written(value, b"", "here").targets[0].no_target
    value["targets"][0]["box"] = [0, 0, 1, 1]
    assert not record_as_written(value, b"", "here").targets[0].no_target


def test_expression_ids_name_image_target_and_index() -> None:
    target = Target(
        "t", "part", "c", encode(np.ones((1, 1), np.uint8)), (0, 0, 1, 1), (Expression("a"), Expression("b"))
    )
    record = ImageRecord("im", b"", 1, 1, "train", "s", (target,))
    assert [expression_id(record, *pair) for pair in record.pairs()] == ["im/t/0", "im/t/1"]


def valid() -> dict[str, Any]:
    counts = encode(np.eye(4, 3, dtype=np.uint8)).counts.decode()
    target = {
        "id": "t",
        "granularity": "part",
        "category": "wheel",
        "box": [0, 0, 3, 3],
        "mask": {"size": [4, 3], "counts": counts},
        "expressions": ["the wheel"],
    }
    return {"id": "r", "image": "a.jpg", "width": 3, "height": 4, "split": "val", "source": "s", "targets": [target]}


def change(path: str, new: Any) -> dict[str, Any]:
    value: Any = valid()
    *above, last = path.split(".")
    at = value
    for key in above:
        at = at[int(key) if key.isdigit() else key]
    at[last] = new
    return value


@pytest.mark.parametrize(
    ("path", "new", "message"),
    [
        ("width", 4, r"'mask.size': found \[4, 3\], expected the image's size, \[4, 4\]"),
        ("width", True, "'width': found True"),
        ("height", 30_000, "'height': found 30000.*20000"),
        ("split", "", "'split'"),
        ("targets", [], "at least one target"),
        ("colour", 1, "unknown field 'colour'; allowed: "),
        ("targets", valid()["targets"] * 2, "the id 't' twice"),
        ("targets.0.granularity", "pixel", "'granularity': found 'pixel', expected one of object, part"),
        ("targets.0.parent", "x", "'parent': found 'x'"),
        ("targets.0.box", [0, 0, 3], "'box'"),
        ("targets.0.mask.counts", "000", r"'mask.counts'"),
        ("targets.0.mask.counts", "~~", "'mask.counts'"),
        ("targets.0.mask.counts", "é", "'mask.counts'"),
        ("targets.0.mask.size", [3, 4], r"expected the image's size, \[4, 3\]"),
        ("targets.0.expressions", [], "'expressions'"),
        ("targets.0.expressions", [" "], "'expressions': found ' ', expected text of 1 to 2000"),
        ("targets.0.expressions", ["x" * 2001], "text of 1 to 2000"),
        ("targets.0.expressions", [{"text": "a", "sort": "b"}], "unknown field 'sort'"),
        ("targets.0.expressions", [{"txt": "a", "text": "a"}], "'txt'; did you mean 'text'?"),
        ("targets.0.expressions", [{"text": "a", "sent": "a"}], "'sent'; did you mean 'text'?"),
        ("targets.0.bbox", [0, 0, 1, 1], "'bbox'; did you mean 'box'?"),
        ("targets.0.segmentation", [], "'segmentation'; did you mean 'mask'?"),
        ("file_name", "a.jpg", "'file_name'; did you mean 'image'?"),
        ("id", "\ud800", r"'id': found '\\ud800'"),
        ("split", "a\udfff", "'split'"),
        ("targets.0.category", "\ud800", "'category'"),
        ("targets.0.category", "", "'category'"),
        ("targets.0.expressions", ["the \ud800 cat"], "'expressions'"),
        ("targets.0.expressions", [{"text": "a", "kind": "\ud800"}], "'expressions.kind'"),
        ("targets.0.expressions", [{"text": "a", "sent_id": 1.5}], "'sent_id': found 1.5"),
        ("targets.0.expressions", [{"text": "a", "sent_index": -1}], "'expressions.sent_index': found -1"),
        ("targets.0.ref_id", True, "'ref_id': found True"),
        ("targets.0.ref_id", 10**400, "'ref_id': found 1000"),
        ("targets.0.ann_id", [1, None], "'ann_id'"),
        ("targets.0.no_target", True, "'no_target': found true beside a mask with pixels"),
        ("targets.0.box", [10**400, 0, 1, 1], "'box'"),
        ("targets.0.box", [float("inf"), 0, 1, 1], "'box'"),
        ("targets.0.box", [float("nan"), 0, 1, 1], "'box'"),
        ("targets.0.mask.size", [10**400, 3], "'mask.size'"),
        ("width", 10**400, "'width': found 1000"),
    ],
)
def test_what_breaks_the_format_is_named(path: str, new: Any, message: str) -> None:
    with pytest.raises(RecordError, match=message) as caught:
        record_from_json(change(path, new), b"", "file.jsonl:7")
    assert str(caught.value).startswith("file.jsonl:7: ")


def test_the_valid_record_is_accepted(tmp_path: Path) -> None:
    record = record_from_json(valid(), b"x", "here")
    assert record.targets[0].expressions == (Expression("the wheel", ""),)
