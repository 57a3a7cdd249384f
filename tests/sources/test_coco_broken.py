"""COCO files with broken entries: each costs itself and is named; what is wrong everywhere ends the build, several at once."""

import json
import random
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from made_coco import annotation, area_of, by_id, open_weights, rectangle, run_lengths, write_coco

from mres.errors import UserError
from mres.records import ImageRecord, RecordError
from mres.shards.check import check_record
from mres.shards.writer import WriteOptions, write_shards
from mres.sources.source import NothingLeftError, RecordSource

GOOD = [annotation(i, 1 + i % 2, [rectangle(2 + i, 3, 10, 4)], image=1 + i % 3, iscrowd=0) for i in range(1, 7)]


def changed(folder: Path, change: Any, form: str = "instances", *options: str) -> RecordSource:
    """The source of a good file of three images after `change(its JSON)`."""
    given = write_coco(folder, ["wheel", "door"], deepcopy(GOOD), ("a.jpg", "b.jpg", "c.jpg"))
    value = json.loads((folder / "annotations.json").read_text())
    change(value)
    (folder / "annotations.json").write_text(json.dumps(value))
    return open_weights(form, *given, *options)


def put(table: str, position: int, **fields: Any) -> Any:
    return lambda value: value[table][position].update(fields)


def add(table: str, entry: Any) -> Any:
    return lambda value: value[table].append(entry)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add("annotations", 7), r"annotations\[6\] has no 'id'"),
        (add("annotations", {}), r"annotations\[6\] has no 'id'"),
        (put("annotations", 2, id=True), r"annotations\[2\] has no 'id' .*found True"),
        (put("annotations", 5, id=1), r"the id 1 occurs twice in 'annotations': annotations\[0\] and annotations\[5\]"),
        (put("annotations", 5, id="1.0"), r"the id 1 occurs twice in 'annotations': .*\[0\] and .*\[5\]"),
        (put("annotations", 0, image_id=10**400), r"annotation 1: its image \d.* is not in 'images'"),
        (put("annotations", 0, image_id=None), "annotation 1: its image None is not in 'images'"),
        (put("annotations", 0, category_id=[1]), r"annotation 1: its category \[1\] is not in 'categories'"),
        (add("images", None), r"images\[3\] has no 'id'"),
        (
            add("images", {"id": 2, "file_name": "b.jpg"}),
            r"the id 2 occurs twice in 'images': images\[1\] and images\[3\]",
        ),
        (add("images", {"id": 9, "file_name": "\ud800.jpg"}), r"images, id 9: field 'file_name' is '\\ud800.jpg'"),
        (add("images", {"id": 9, "file_name": ".\\a.jpg"}), r"images 1 and 9 both have the file name '.\\\\a.jpg'"),
    ],
)
def test_a_broken_entry_costs_itself(change: Any, message: str, tmp_path: Path) -> None:
    source = changed(tmp_path, change)
    error, *records = source
    with pytest.raises(RecordError, match=message):
        raise error  # type: ignore[misc]
    assert [record.id for record in records if isinstance(record, ImageRecord)] == ["a", "b", "c"]
    manifest = write_shards(source, tmp_path / "out", WriteOptions(max_bad_fraction=0.3))
    assert (manifest.counts.images, manifest.counts.quarantined) == (3, 1)


def test_an_id_of_two_images_is_of_neither(tmp_path: Path) -> None:
    source = changed(tmp_path, add("images", {"id": 2, "file_name": "d.jpg"}))
    assert "images[1] and images[3]" in str(source.errors[0])
    assert [str(error).split(": ", 1)[1] for error in source.errors[1:]] == [
        f"annotation {number}: its image 2 is not in 'images'" for number in (1, 4)
    ]
    assert [one.id for one in source if isinstance(one, ImageRecord)] == ["a", "c"]


@pytest.mark.parametrize(
    "segmentation",
    [[[1, 2, 3, 4, 5, "6"]], [[1, 2, 10**400, 4, 5, 6]], {"size": [20, 40], "counts": [2**32, 800]}, ["x"]],
)
def test_a_damaged_mask_costs_its_image_and_ends_no_build_with_a_budget(segmentation: Any, tmp_path: Path) -> None:
    source = changed(tmp_path, put("annotations", 0, segmentation=segmentation))
    assert write_shards(source, tmp_path / "out", WriteOptions(max_bad_fraction=0.4)).counts.quarantined == 1
    with pytest.raises(UserError, match=r"image 2 \(b.jpg\), annotation 1: "):
        write_shards(source, tmp_path / "strict", WriteOptions())


@pytest.mark.parametrize(
    "sizes", [(2e9, 20), (2 * 10**9, 20), (-1, 20), ("x", 20), (40.5, 20), (40, None), (20_001, 1)]
)
def test_a_size_is_bounded_before_a_mask_is_made(sizes: tuple[Any, Any], tmp_path: Path) -> None:
    source = changed(tmp_path, put("images", 1, width=sizes[0], height=sizes[1]))
    (error,) = [record for record in source if isinstance(record, RecordError)]
    assert "image 2 (b.jpg): width " in str(error)
    assert "1 to 20000" in str(error)


def test_what_is_wrong_with_the_whole_is_listed(tmp_path: Path) -> None:
    def nameless(value: dict[str, Any]) -> None:
        value["categories"] = [{"id": i, "name": None} for i in range(25)]

    with pytest.raises(UserError, match=r"25 errors:\n.*id 0: field 'name' is None.*\n(.*\n){19}.*and 5 more"):
        changed(tmp_path, nameless)
    with pytest.raises(UserError, match=r"no list 'annotations'; did you mean 'anotations'"):
        changed(tmp_path, lambda value: value.update(anotations=value.pop("annotations")))
    with pytest.raises(UserError, match=r"no annotations at .*; did you mean '.*annotations.json'"):
        open_weights("instances", "--annotations", f"{tmp_path}/anotations.json", "--images", str(tmp_path))


@pytest.mark.parametrize("form", ["instances", "coco"])
def test_a_mask_without_a_pixel_is_a_truth_only_where_it_is_evaluated(form: str, tmp_path: Path) -> None:
    options = ["--all-images", "--whole", ""] if form == "coco" else []
    speck = put("annotations", 3, segmentation=[rectangle(2.1, 3.1, 0.01, 0.01)])  # the only wheel of image 2

    def of_image_2(split: str) -> tuple[dict[str, int], RecordSource]:
        source = changed(tmp_path, speck, form, "--split", split, *options)
        (record,) = (one for one in source if isinstance(one, ImageRecord) and one.id.startswith("b"))
        check_record(record, "here")
        return {target.id: area_of(target) for target in record.targets}, source

    found, source = of_image_2("train")
    assert found == {"door": 40}
    assert source.notes["masks that cover no pixel, left out"] == 1
    found, source = of_image_2("val")
    assert found == {"door": 40, "wheel": 0}
    assert source.notes["masks that cover no pixel, kept as empty truth (held-out split)"] == 1


def test_an_image_without_a_pixel_is_passed_over_in_training(tmp_path: Path) -> None:
    def specks(value: dict[str, Any]) -> None:
        for number in (0, 3):
            value["annotations"][number]["segmentation"] = [rectangle(2.1, 3.1, 0.01, 0.01)]

    source = changed(tmp_path, specks)
    assert [one.id if isinstance(one, ImageRecord) else type(one) for one in source] == ["a", NothingLeftError, "c"]
    assert source.notes["images none of whose masks covers a pixel, left out"] == 1
    manifest = write_shards(source, tmp_path / "out", WriteOptions())
    assert (manifest.counts.images, manifest.counts.quarantined) == (2, 0)
    kept = [one for one in changed(tmp_path, specks, "instances", "--split", "test") if isinstance(one, ImageRecord)]
    assert [sorted(map(area_of, by_id(one).values())) for one in kept] == [[40, 40], [0, 0], [40, 40]]


_VALUES: list[Any] = [
    *(None, True, 0, 1, -1, 1.5, float("nan"), float("inf"), 10**400, 2e9, "", "x", "1", "\ud800", "a" * 5000),
    *("../x", "a\0b", [], [[]], {}, [None], [[1, 2]], [[1, 2, 3, 4]], [1, 2, 3, 4, 5, 6], [[[1, 2], [30, 4], [9, 19]]]),
    *({"counts": []}, {"size": [20, 40], "counts": [2**32, 1]}, {"size": None, "counts": "é"}, run_lengths(1, 1, 3, 3)),
    *([[1e8, 1e8, 2e9, 2e9, 1, 1]], [[10**400] * 6], ["x"], [{"a": 1}], [[["a"]]], [[[[1, 2]]]]),
]


def _spots(value: Any) -> list[tuple[Any, Any]]:
    """Every (dictionary or list, key) in a JSON value."""
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return [spot for key, below in items for spot in ((value, key), *_spots(below))]


@pytest.mark.exhaustive
@pytest.mark.parametrize("form", ["instances", "coco", "paco", "lvis", "pascalpart", "partimagenet"])
def test_whatever_stands_in_a_field_is_named_or_read(form: str, tmp_path: Path) -> None:
    rng = random.Random(form)

    def damage(value: dict[str, Any]) -> None:
        value |= {"part_categories": []} if form == "paco" else {}
        names = {"partimagenet": ["Car Tier", "Bird"], "paco": ["car:wheel", "car"], "pascalpart": ["car:wheel", "car"]}
        for entry, name in zip(value["categories"], names.get(form, ["wheel", "door"]), strict=True):
            entry["name"] = name
        for entry in value["images"] if form == "lvis" else ():
            entry["not_exhaustive_category_ids"] = [2]
        for _ in range(rng.randint(1, 2)):
            where, key = rng.choice(_spots(value))
            if isinstance(where, dict) and rng.random() < 0.1:
                where.pop(key, None)
            else:
                where[key] = deepcopy(rng.choice(_VALUES))

    options = ["--split", "val", *(["--all-images"] if form == "coco" else [])]
    for _ in range(100):
        try:
            source = changed(tmp_path, damage, form, *options)
            for record in source:
                if isinstance(record, ImageRecord):
                    check_record(record, "here")
            "".join(source.notes).encode()
        except UserError as error:
            str(error).encode()
