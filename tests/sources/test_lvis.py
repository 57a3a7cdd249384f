"""LVIS v1: images are named by their address, and what an image may have more of is not told as if it were all."""

import json
from pathlib import Path
from typing import Any

import pytest
from made_coco import annotation, only_record, open_weights, rectangle, texts, write_coco

from mres.errors import UserError

CATEGORIES = ["car_(automobile)", "traffic_light", "person"]
CAR, LIGHT, PERSON = 1, 2, 3


def write_lvis(folder: Path, annotations: list[dict[str, Any]], unsure: list[int]) -> list[str]:
    """A file as it is published: no `file_name`, an address instead."""
    name = "train2017/000000391895.jpg"
    options = write_coco(folder, CATEGORIES, annotations, (name,))
    path = folder / "annotations.json"
    value = json.loads(path.read_text())
    (image,) = value["images"]
    del image["file_name"]
    image |= {"coco_url": f"http://images.cocodataset.org/{name}", "neg_category_ids": [LIGHT]}
    image["not_exhaustive_category_ids"] = unsure
    path.write_text(json.dumps(value))
    return options


def test_objects_by_their_nouns(tmp_path: Path) -> None:
    items = [annotation(1, CAR, [rectangle(0, 5, 5, 10)]), annotation(2, PERSON, [rectangle(30, 0, 4, 9), [1, 2]])]
    source = open_weights("lvis", *write_lvis(tmp_path, items, unsure=[]), "--split", "val")
    record = only_record(source)
    assert (record.id, record.source, record.split) == ("000000391895", "lvis", "val")
    assert [(t.id, texts(t)) for t in record.targets] == [
        ("car", ["the car", "car"]),
        ("person", ["the person", "person"]),
    ]
    assert source.notes == {"polygons of fewer than three points, left out": 1}
    assert source.description["format"] == "lvis"


def test_what_is_not_exhaustively_annotated_is_left_out(tmp_path: Path) -> None:
    items = [annotation(1, CAR, [rectangle(0, 5, 5, 10)]), annotation(2, PERSON, [rectangle(30, 0, 4, 9)])]
    source = open_weights("lvis", *write_lvis(tmp_path, items, unsure=[PERSON]))
    assert [t.id for t in only_record(source).targets] == ["car"]
    assert source.notes == {"annotations of objects of which their image has more, not annotated, left out": 1}


def test_files_of_coco_are_refused(tmp_path: Path) -> None:
    options = write_coco(tmp_path, CATEGORIES, [annotation(1, CAR, [rectangle(0, 5, 5, 10)])])
    with pytest.raises(UserError, match=r"not an LVIS file: .*not_exhaustive_category_ids.* format instances"):
        open_weights("lvis", *options)
