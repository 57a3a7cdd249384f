"""gRefCOCO: refs to no, one or several objects."""

import json
from pathlib import Path
from typing import Any

import pytest
from made_coco import by_id, decode, open_weights, rectangle_mask, texts
from made_refer import DOG, annotation, rectangle, ref, write_data

from mres.errors import UserError
from mres.records import ImageRecord
from mres.shards.check import check_record
from mres.sources.grefcoco import grefcoco
from mres.sources.source import RecordSource

CROWD = {"size": [20, 40], "counts": [0, 400, 400]}
ANNOTATIONS = [
    annotation(11, 5, rectangle(2, 3, 10, 4)),
    annotation(12, 5, rectangle(8, 3, 10, 8), category=DOG),
    annotation(13, 5, rectangle(30, 3, 4, 4)),
    annotation(14, 5, CROWD, iscrowd=1),
    annotation(15, 9, rectangle(1, 1, 2, 2)),
]
REFS = [
    ref(1, [11], 5, "val", "one"),
    ref(2, [12, 11], 5, "val", "both", "woman and dog"),
    ref(3, [13, 11], 5, "val", "two people"),
    ref(4, [-1], 5, "val", "the green horse"),
    ref(5, [11, 14], 5, "val", "all of them"),
    ref(6, [14], 5, "val", "the crowd"),
    ref(7, 15, 9, "testA", "single"),
]


def read(root: Path, refs: Any = REFS, split: str = "val", name: str = "grefs(unc).json") -> RecordSource:
    write_data(root / "grefcoco", name, refs, ANNOTATIONS)
    return grefcoco(root, root / "train2014", split=split)


@pytest.mark.parametrize("name", ["grefs(unc).json", "grefs(unc).p"])
def test_refs_to_any_number_of_objects(name: str, tmp_path: Path) -> None:
    source = read(tmp_path, name=name)
    (record,) = source
    assert isinstance(record, ImageRecord)
    assert (record.id, record.source, record.split) == ("COCO_train2014_000000000005", "grefcoco", "val")
    found = by_id(record)
    assert {id_: target.category for id_, target in found.items()} == {
        "1": "person",
        "2": "dog+person",
        "3": "person",
        "4": "",
        "5": "person",
        "6": "person",
    }
    assert [id_ for id_, target in found.items() if target.no_target] == ["4"]
    assert {id_: (target.ref_id, target.ann_id) for id_, target in found.items()} == {
        "1": (1, (11,)), "2": (2, (12, 11)), "3": (3, (13, 11)), "4": (4, (-1,)), "5": (5, (11, 14)), "6": (6, (14,)),
    }  # fmt: skip
    assert not decode(found["6"].mask).any()  # a crowd alone: an empty truth, which is not meant so
    assert {target.granularity for target in record.targets} == {"object"}
    one_HW, dog_HW = rectangle_mask(2, 3, 10, 4), rectangle_mask(8, 3, 10, 8)
    assert (decode(found["1"].mask) == one_HW).all()
    assert (decode(found["2"].mask) == one_HW | dog_HW).all()
    assert found["2"].box == (2, 3, 16, 8)
    assert texts(found["2"]) == ["both", "woman and dog"]
    assert (decode(found["3"].mask) == one_HW | rectangle_mask(30, 3, 4, 4)).all()
    assert (decode(found["5"].mask) == one_HW).all()  # without the crowd
    assert source.notes == {
        "masks of crowds, left out": 2,
        "masks that cover no pixel, kept as empty truth (held-out split)": 1,
        "refs to nothing, with an empty mask": 1,
        "refs of other splits than 'val', left out": 1,
        "split 'val' without published counts, not compared": 1,
        "expressions of all splits (published: 278232)": 8,
        "expressions of all splits that refer to nothing (published: 32202)": 1,
    }
    assert source.description["refs"] == f"grefcoco/{name}"


def test_a_ref_to_nothing_has_an_empty_mask_that_can_be_written(tmp_path: Path) -> None:
    (record,) = read(tmp_path, [ref(4, [-1], 5, "val", "the green horse")])
    assert isinstance(record, ImageRecord)
    (target,) = record.targets
    assert (target.mask.height, target.mask.width, target.box) == (20, 40, (0, 0, 0, 0))
    assert not decode(target.mask).any()
    assert decode(target.mask).shape == (20, 40)
    check_record(record, "test")


def test_the_command_line_reads_the_same(tmp_path: Path) -> None:
    read(tmp_path, split="testA")
    images = str(tmp_path / "train2014")
    (record,) = open_weights("grefcoco", "--root", str(tmp_path), "--images", images, "--split", "testA")
    assert isinstance(record, ImageRecord)
    assert [target.id for target in record.targets] == ["7"]  # a single number as its annotation


@pytest.mark.parametrize(
    ("refs", "message"),
    [
        ([ref(1, [11, 99], 5, "val", "x")], "1 of 1 refs .*ref 1: its annotation 99 is not there"),
        ([ref(1, [-1, 11], 5, "val", "x")], "ref 1: its annotation -1 is not there"),
        ([ref(1, [11, 15], 5, "val", "x")], "ref 1: its image is 5, that of its annotation 15 is 9"),
        ([ref(1, [-1], 6, "val", "x")], "ref 1: its image 6 is not there"),
        ([ref(1, [], 5, "val", "x")], r"field 'ann_id': found \[\]"),
        ([ref(1, [11], 5, "testAB", "x")], "no ref of the split 'val'.*testAB"),
    ],
)
def test_refs_that_do_not_fit_are_refused(refs: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"grefs\(unc\).json'.*" + message):
        read(tmp_path, refs)


def test_the_text_as_typed_is_taken_if_asked_for(tmp_path: Path) -> None:
    write_data(tmp_path / "grefcoco", "grefs(unc).json", REFS, ANNOTATIONS)
    images = str(tmp_path / "train2014")
    options = ["--root", str(tmp_path), "--images", images, "--split", "testA", "--text", "raw"]
    source = open_weights("grefcoco", *options)
    (record,) = source
    assert texts(record.targets[0]) == ["Single."]
    assert record.targets[0].ann_id == 15
    assert source.description["text"] == "raw"


def test_splits_are_matched_exactly(tmp_path: Path) -> None:
    (record,) = read(tmp_path, [ref(1, [11], 5, "testA", "x"), ref(2, [12], 5, "testAB", "y")], split="testA")
    assert isinstance(record, ImageRecord)
    assert list(by_id(record)) == ["1"]
    with pytest.raises(UserError, match=r"unknown split 'test'.*train, val, testA, testB"):
        read(tmp_path, split="test")


def test_missing_or_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder 'grefcoco' in '.*' \(--root\); folders there: none"):
        grefcoco(tmp_path, tmp_path, split="val")
    read(tmp_path)
    path = tmp_path / "grefcoco/grefs(unc).json"
    path.write_text(json.dumps(REFS)[:-5])
    with pytest.raises(UserError, match=r"grefs\(unc\).json': not JSON"):
        grefcoco(tmp_path, tmp_path / "train2014", split="val")
    path.unlink()
    with pytest.raises(UserError, match=r"neither 'grefs\(unc\).p' nor 'grefs\(unc\).json' in '.*grefcoco'"):
        grefcoco(tmp_path, tmp_path / "train2014", split="val")
