"""PACO-LVIS: parts under the object that their annotation names, texts that fit one target only."""

import json
from pathlib import Path
from typing import Any

import pytest
from made_coco import (
    annotation,
    area_of,
    by_id,
    decode,
    only_record,
    open_weights,
    rectangle_mask,
    run_lengths,
    texts,
    write_coco,
)

from mres.errors import UserError
from mres.record_checks import record_from_json
from mres.record_json import record_to_json
from mres.records import RecordError

CATEGORIES = ["car_(automobile)", "dog", "car_(automobile):wheel", "car_(automobile):taillight", "dog:leg"]
CAR, DOG, WHEEL, TAILLIGHT, LEG = range(1, 6)
# What a genuine file has beside COCO's three tables.
EXTRA: dict[str, Any] = {
    "part_categories": [{"supercategory": "PART", "id": 1, "name": "wheel"}],
    "attributes": [{"supercategory": "ATTR", "id": 1, "name": "black"}],
    "attr_type_to_attr_idxs": {"color": [1]},
    "queries": [],
}


def paco(id_: int, category: int, mask: Any, owner: int | None = None) -> dict[str, Any]:
    """An annotation as PACO has it; an object is its own owner."""
    extra = {"attribute_ids": [1], "dom_color_ids": [1], "unknown_color": 0, "bbox": [0, 0, 1, 1], "area": 1.0}
    return annotation(id_, category, mask, obj_ann_id=id_ if owner is None else owner, **extra)


def data_set(folder: Path, annotations: list[dict[str, Any]], **options: Any) -> list[str]:
    names = {"file_names": ("train2017/000000000001.jpg",)} | options
    return write_coco(folder, CATEGORIES, annotations, **names, **EXTRA)


ONE_CAR = [
    paco(7, WHEEL, run_lengths(2, 10, 4, 4), owner=5),
    paco(5, CAR, run_lengths(0, 2, 20, 14)),
    paco(8, TAILLIGHT, run_lengths(1, 4, 2, 2), owner=5),
]
TWO_CARS = [
    paco(1, CAR, run_lengths(30, 0, 8, 8)),
    paco(2, CAR, run_lengths(0, 0, 8, 8)),
    paco(3, WHEEL, run_lengths(31, 6, 2, 2), owner=1),
    paco(4, WHEEL, run_lengths(1, 6, 2, 2), owner=2),
    paco(5, TAILLIGHT, run_lengths(0, 2, 1, 1), owner=2),
    paco(6, DOG, run_lengths(15, 10, 5, 5)),
    paco(7, LEG, run_lengths(15, 13, 1, 2), owner=6),
]


def test_an_object_alone_and_its_parts(tmp_path: Path) -> None:
    record = only_record(open_weights("paco", *data_set(tmp_path, ONE_CAR), "--split", "val"))
    assert (record.id, record.source, record.split) == ("000000000001", "paco-lvis", "val")
    found = by_id(record)
    assert {id_: (t.granularity, t.category, t.parent) for id_, t in found.items()} == {
        "car": ("object", "car", None),
        "car:wheel": ("part", "car:wheel", "car"),
        "car:taillight": ("part", "car:taillight", "car"),
    }
    assert texts(found["car"]) == ["the car", "car"]
    assert texts(found["car:wheel"]) == ["wheel of the car", "the wheel of the car", "the car's wheel"]
    assert (decode(found["car:wheel"].mask) == rectangle_mask(2, 10, 4, 4)).all()
    assert found["car:wheel"].box == (2, 10, 4, 4)
    assert record_from_json(record_to_json(record, "x"), record.image, "here") == record


def test_two_of_a_kind_are_told_together_and_by_position(tmp_path: Path) -> None:
    found = by_id(only_record(open_weights("paco", *data_set(tmp_path, TWO_CARS))))
    left, right = "car.2", "car.1"
    assert {id_: (texts(t)[0], area_of(t), t.parent) for id_, t in found.items()} == {
        "car": ("the cars", 128, None),
        "car:wheel": ("wheels of the cars", 8, "car"),  # both show one; only one shows a taillight
        left: ("the left car", 64, None),
        f"{left}:wheel": ("wheel of the left car", 4, left),
        f"{left}:taillight": ("taillight of the left car", 1, left),
        right: ("the right car", 64, None),
        f"{right}:wheel": ("wheel of the right car", 4, right),
        "dog": ("the dog", 25, None),
        "dog:leg": ("leg of the dog", 2, "dog"),
    }
    assert texts(found[f"{left}:wheel"])[2] == "the left car's wheel"
    assert texts(found["car:wheel"])[2] == "the cars' wheels"
    kinds = {id_: {e.kind for e in t.expressions} for id_, t in found.items()}
    assert kinds[left] == kinds[f"{left}:wheel"] == {"position"}
    assert kinds["car"] == kinds["car:wheel"] == kinds["dog:leg"] == {"category"}


def test_no_text_stands_for_two_targets(tmp_path: Path) -> None:
    record = only_record(open_weights("paco", *data_set(tmp_path, TWO_CARS)))
    said = [text for target in record.targets for text in texts(target)]
    assert len(said) == len(set(said))


def test_instances_side_by_side_are_told_together_only(tmp_path: Path) -> None:
    close = [paco(1, CAR, run_lengths(10, 0, 8, 8)), paco(2, CAR, run_lengths(12, 9, 8, 8))]
    close.append(paco(3, WHEEL, run_lengths(10, 6, 2, 2), owner=1))
    source = open_weights("paco", *data_set(tmp_path, close))
    assert list(by_id(only_record(source))) == ["car"]
    assert source.notes["instances that nothing but their group refers to"] == 2


def test_objects_that_are_not_all_annotated_are_left_out(tmp_path: Path) -> None:
    options = data_set(tmp_path, TWO_CARS)
    value = json.loads((tmp_path / "annotations.json").read_text())
    value["images"][0] |= {"not_exhaustive_category_ids": [CAR, WHEEL], "neg_category_ids": []}
    (tmp_path / "annotations.json").write_text(json.dumps(value))
    source = open_weights("paco", *options)
    assert list(by_id(only_record(source))) == ["dog", "dog:leg"]
    assert source.notes["annotations of objects of which their image has more, not annotated, left out"] == 5


def test_counts_are_compared_with_the_published_ones(tmp_path: Path) -> None:
    options = data_set(tmp_path, ONE_CAR)
    assert open_weights("paco", *options).notes["images of the file, though PACO-LVIS train was published with 45790"]
    assert not open_weights("paco", *options, "--split", "mine").notes


def test_the_description_says_what_it_was_made_from(tmp_path: Path) -> None:
    description = open_weights("paco", *data_set(tmp_path, ONE_CAR)).description
    assert description["format"] == "paco"
    assert description["annotations"] == f"{tmp_path.name}/annotations.json"
    assert len(description["annotations_sha256"]) == 64
    assert str(tmp_path) not in json.dumps(description)


@pytest.mark.parametrize("owner", [99, 6, None, [1]])
def test_a_part_of_no_object_of_its_kind_is_named(owner: Any, tmp_path: Path) -> None:
    items = [*TWO_CARS[:1], *TWO_CARS[5:], paco(3, WHEEL, run_lengths(31, 6, 2, 2))]
    items[-1]["obj_ann_id"] = owner
    with pytest.raises(
        RecordError, match=r"annotation 3: field 'obj_ann_id' is .*expected the id of a car in its image"
    ):
        only_record(open_weights("paco", *data_set(tmp_path, items)))


def test_a_part_of_an_empty_object_is_left_out(tmp_path: Path) -> None:
    empty = {"size": [20, 40], "counts": [800]}
    items = [*TWO_CARS[5:], paco(1, CAR, empty), paco(3, WHEEL, run_lengths(31, 6, 2, 2), owner=1)]
    source = open_weights("paco", *data_set(tmp_path, items))
    assert list(by_id(only_record(source))) == ["dog", "dog:leg"]
    assert source.notes["masks that cover no pixel, left out"] == 1
    assert source.notes["parts of objects whose mask covers no pixel, left out"] == 1


@pytest.mark.parametrize("stored", ["train2017/000000000001.jpg", "000000000001.jpg"])
def test_images_are_found_by_path_and_by_name(stored: str, tmp_path: Path) -> None:
    record = only_record(open_weights("paco", *data_set(tmp_path, ONE_CAR, stored=(stored,))))
    assert record.image == (tmp_path / "images" / stored).read_bytes()


def test_images_of_one_name_are_found_by_path_only(tmp_path: Path) -> None:
    items = [*ONE_CAR, annotation(9, DOG, run_lengths(0, 0, 4, 4), 2, obj_ann_id=9)]
    options = data_set(tmp_path, items, file_names=("a/1.jpg", "b/1.jpg"))
    (tmp_path / "images/b/1.jpg").rename(tmp_path / "images/1.jpg")
    first, second = open_weights("paco", *options)
    assert not isinstance(first, RecordError)
    assert first.id == "a/1"
    assert isinstance(second, RecordError)
    assert "images/b/1.jpg' cannot be read" in str(second)


@pytest.mark.parametrize("name", ["../1.jpg", "/etc/1.jpg"])
def test_a_path_out_of_the_folder_is_looked_for_within_it(name: str, tmp_path: Path) -> None:
    source = open_weights("paco", *data_set(tmp_path, ONE_CAR, file_names=(name,), stored=("images/1.jpg",)))
    (tmp_path / "1.jpg").write_bytes(b"outside")
    assert only_record(source).image == (tmp_path / "images/images/1.jpg").read_bytes()
    (tmp_path / "images/images/1.jpg").unlink()
    with pytest.raises(RecordError, match=r"1\.jpg' cannot be read: No such file"):
        only_record(
            open_weights("paco", "--annotations", f"{tmp_path}/annotations.json", "--images", f"{tmp_path}/images")
        )


def test_what_is_not_paco_is_refused(tmp_path: Path) -> None:
    options = write_coco(tmp_path, CATEGORIES, ONE_CAR)
    with pytest.raises(UserError, match="not a PACO file: it has no 'part_categories', only annotations, categories"):
        open_weights("paco", *options)
    options = write_coco(tmp_path, [*CATEGORIES, "car:"], ONE_CAR, **EXTRA)
    with pytest.raises(UserError, match="the category 'car:' is not of the form 'object' or 'object:part'"):
        open_weights("paco", *options)
    options = write_coco(tmp_path, CATEGORIES, [], **EXTRA)
    with pytest.raises(UserError, match=r"has no annotated image \(1 images\)"):
        open_weights("paco", *options)
    with pytest.raises(UserError, match=r"no folder at '/nowhere' \(--images\)"):
        open_weights("paco", *options[:3], "/nowhere")
