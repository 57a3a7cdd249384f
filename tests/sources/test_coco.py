"""COCO part annotations: masks, expressions, splits, and what broken files are told."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_coco import HEIGHT, WIDTH, annotation, decode, rectangle, rectangle_mask
from PIL import Image
from pycocotools import mask as coco

from mres.errors import UserError
from mres.records import ImageRecord, RecordError
from mres.sources.coco import coco_parts
from mres.sources.coco_expressions import category_expressions, position_expressions

CARPARTS = Path(__file__).parents[2].parent / "shared/data/carparts"


def data_set(folder: Path, annotations: list[dict[str, Any]], num_images: int = 1, **fields: Any) -> dict[str, Path]:
    """A COCO file with its images; categories 1 _background_, 2 front_bumper, 3 wheel, 4 left_mirror."""
    (folder / "images").mkdir()
    names = ["_background_", "front_bumper", "wheel", "left_mirror"]
    images = []
    for number in range(1, num_images + 1):
        Image.new("RGB", (WIDTH, HEIGHT), (number, 0, 0)).save(folder / f"images/{number}.png")
        images.append({"id": number, "file_name": f"JPEGImages/{number}.png", "width": WIDTH, "height": HEIGHT})
    categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
    value = {"images": images, "categories": categories, "annotations": annotations, **fields}
    path = folder / "annotations.json"
    path.write_text(json.dumps(value))
    return {"annotations": path, "images": folder / "images"}


def only_record(files: dict[str, Path], **options: Any) -> ImageRecord:
    (item,) = coco_parts(**files, split="train", val_images=0, seed=0, **options)
    if isinstance(item, RecordError):
        raise item
    return item


def test_parts_and_their_union_become_targets(tmp_path: Path) -> None:
    bumper, wheels = rectangle(2, 3, 10, 4), [rectangle(5, 10, 4, 4), rectangle(30, 10, 4, 4)]
    items = [
        annotation(1, 2, [bumper]),
        annotation(2, 3, wheels[:1]),
        annotation(3, 3, wheels[1:]),
        annotation(4, 1, []),
    ]
    record = only_record(data_set(tmp_path, items))
    assert (record.id, record.width, record.height, record.split) == ("1.png", WIDTH, HEIGHT, "train")
    assert record.image == (tmp_path / "images/1.png").read_bytes()
    found = {target.id: target for target in record.targets}
    assert list(found) == ["car", "front_bumper", "wheel"]
    bumper_HW = rectangle_mask(2, 3, 10, 4)
    wheels_HW = rectangle_mask(5, 10, 4, 4) | rectangle_mask(30, 10, 4, 4)
    assert (decode(found["front_bumper"].mask) == bumper_HW).all()
    assert (decode(found["wheel"].mask) == wheels_HW).all()
    assert (decode(found["car"].mask) == bumper_HW | wheels_HW).all()
    assert found["front_bumper"].box == (2, 3, 10, 4)
    assert found["wheel"].box == (5, 10, 29, 4)
    assert [(t.granularity, t.category, t.parent) for t in record.targets] == [
        ("object", "car", None),
        ("part", "car:front_bumper", "car"),
        ("part", "car:wheel", "car"),
    ]
    assert [e.text for e in found["car"].expressions] == ["the car", "car", "the whole car"]
    assert [e.text for e in found["wheel"].expressions] == ["wheels of the car", "the wheels", "the car's wheels"]
    assert {e.kind for target in record.targets for e in target.expressions} == {"category"}


def test_instances_that_stand_apart_are_told_by_position(tmp_path: Path) -> None:
    wheels = [rectangle(30, 10, 4, 4), rectangle(5, 10, 4, 4)]
    files = data_set(tmp_path, [annotation(1, 3, wheels), annotation(2, 2, [rectangle(0, 0, 2, 2)])])
    assert [t.id for t in only_record(files, instances=True).targets] == ["car", "front_bumper", "wheel"]
    record = only_record(files, instances=True, separate=["wheel"])
    found = {target.id: target for target in record.targets}
    assert list(found) == ["car", "front_bumper", "wheel", "wheel.1", "wheel.0"]
    assert found["wheel.0"].box[0] == 30
    assert [e.text for e in found["wheel.0"].expressions] == [
        "the right wheel",
        "right wheel of the car",
        "wheel on the right",
    ]
    assert {e.kind for e in found["wheel.1"].expressions} == {"position"}
    assert [e.text for e in found["wheel"].expressions][1] == "the wheels"


def test_position_words_need_a_clear_margin_and_no_left_or_right_in_the_name() -> None:
    assert position_expressions("wheel", "car", [(10, 0, 4, 4), (12, 0, 4, 4)], width=100) == {}
    assert position_expressions("left_mirror", "car", [(10, 0, 4, 4), (80, 0, 4, 4)], width=100) == {}
    three = position_expressions("wheel", None, [(50, 0, 4, 4), (10, 0, 4, 4), (55, 0, 4, 4)], width=100)
    assert {index: [e.text for e in found] for index, found in three.items()} == {1: ["the leftmost wheel"]}


@pytest.mark.parametrize(
    ("name", "several", "expected"),
    [
        ("left_mirror", False, ["left mirror of the car", "the left mirror", "the car's left mirror"]),
        ("front_glass", True, ["front glasses of the car", "the front glasses", "the car's front glasses"]),
        ("body", True, ["bodies of the car", "the bodies", "the car's bodies"]),
    ],
)
def test_expressions_come_from_the_categorys_name(name: str, several: bool, expected: list[str]) -> None:
    assert [e.text for e in category_expressions(name, "car", several=several)] == expected


def test_without_a_whole_there_are_parts_only(tmp_path: Path) -> None:
    record = only_record(data_set(tmp_path, [annotation(1, 2, [rectangle(2, 3, 10, 4)])]), whole=None)
    (target,) = record.targets
    assert (target.id, target.category, target.parent) == ("front_bumper", "front_bumper", None)
    assert [e.text for e in target.expressions] == ["the front bumper", "front bumper"]


def test_every_form_of_mask_is_read_alike(tmp_path: Path) -> None:
    mask_HW = np.asfortranarray(rectangle_mask(2, 3, 10, 4))
    compressed = coco.encode(mask_HW)
    pixels = mask_HW.reshape(-1, order="F")
    edges = np.flatnonzero(np.diff(pixels, prepend=0))
    runs = np.diff(np.concatenate([[0], edges, [pixels.size]])).tolist()
    forms = [
        [rectangle(2, 3, 10, 4)],
        {"size": [HEIGHT, WIDTH], "counts": runs},
        {"size": [HEIGHT, WIDTH], "counts": compressed["counts"].decode()},
    ]
    items = [annotation(i, 2, form, image=i) for i, form in enumerate(forms, start=1)]
    items[1]["iscrowd"] = 1
    files = data_set(tmp_path, items, num_images=3)
    records = list(coco_parts(**files, split="train", val_images=0, seed=0))
    assert [r.targets[1].mask.counts for r in records] == [compressed["counts"]] * 3


def test_polygons_are_clipped_to_the_image_and_counted(tmp_path: Path) -> None:
    source = coco_parts(
        **data_set(tmp_path, [annotation(1, 2, [rectangle(-5, -5, 10, 10)])]), split="train", val_images=0, seed=0
    )
    (record,) = source
    assert (decode(record.targets[1].mask) == rectangle_mask(0, 0, 5, 5)).all()
    assert source.notes == {"masks clipped to their image": 1}


def test_the_held_out_images_are_stable(tmp_path: Path) -> None:
    items = [annotation(i, 2, [rectangle(2, 3, 10, 4)], image=i) for i in range(1, 21)]
    files = data_set(tmp_path, items, num_images=22)  # the last two are without annotations

    def ids(split: str, seed: int = 0, val_images: int = 5) -> list[str]:
        source = coco_parts(**files, split=split, val_images=val_images, seed=seed)
        assert source.notes["images without annotations, left out"] == 2
        found = [record.id for record in source]
        assert len(source) == len(found)
        return found

    assert len(ids("val")) == 5
    assert sorted(ids("val") + ids("train")) == sorted(f"{i}.png" for i in range(1, 21))
    assert ids("val") != ids("val", seed=1)
    assert set(ids("val")) < set(ids("val", val_images=9))
    before = ids("val")
    value = json.loads(files["annotations"].read_text())
    value["images"].reverse()
    files["annotations"].write_text(json.dumps(value))
    assert ids("val") == before[::-1]


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([rectangle(2, 3, 1e9, 4)], "far outside"),
        ([[1, 2, 3, 4, 5, "6"]], "coordinate that is not a number"),
        ([rectangle(2, 3, float("nan"), 4)], "coordinate that is not a number"),
        ("[[1, 2, 3, 4, 5, 6]]", "'segmentation' is str, expected polygons"),
        ({"size": [40, 20], "counts": [800]}, r"the mask's size is \[40, 20\], the image's is \[20, 40\]"),
        ({"size": [20, 40], "counts": [10, 5]}, "cover 15 pixels, the image has 800"),
        ({"size": [20, 40], "counts": [-10, 810]}, "neither a compressed string nor"),
        ({"size": [20, 40], "counts": "Zz~"}, "outside the RLE alphabet"),
    ],
)
def test_a_bad_mask_is_named(segmentation: Any, message: str, tmp_path: Path) -> None:
    files = data_set(tmp_path, [annotation(77, 2, segmentation), annotation(5, 2, [rectangle(1, 1, 3, 3)], 2)], 2)
    error, good = coco_parts(**files, split="train", val_images=0, seed=0)
    assert isinstance(error, RecordError)
    assert isinstance(good, ImageRecord)
    with pytest.raises(RecordError, match=r"annotations.json: image 1 \(1.png\), annotation 77: .*" + message):
        raise error


def test_an_annotation_that_belongs_nowhere_is_named(tmp_path: Path) -> None:
    polygon = [rectangle(2, 3, 10, 4)]
    items = [annotation(1, 2, polygon), annotation(2, 2, polygon, image=99), annotation(3, 55, polygon, image=2)]
    source = coco_parts(**data_set(tmp_path, items, num_images=2), split="train", val_images=0, seed=0)
    found = list(source)
    assert len(found) == len(source) == 3
    assert str(found[0]).endswith("annotation 2: its image 99 is not in 'images'")
    assert str(found[1]).endswith("annotation 3: its category 55 is not in 'categories'")
    assert isinstance(found[2], ImageRecord)


def test_a_missing_image_file_is_named(tmp_path: Path) -> None:
    files = data_set(tmp_path, [annotation(1, 2, [rectangle(2, 3, 10, 4)])])
    (tmp_path / "images/1.png").unlink()
    with pytest.raises(RecordError, match=r"image 1 \(1.png\): '.*images/1.png' cannot be read: No such file"):
        only_record(files)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no annotations at"),
        ("{", "annotations.json.: not JSON"),
        ("[]", "is not a COCO file: it has no list 'categories'"),
        ('{"categories": [], "images": [{}]}', r"images\[0\] has no 'id'"),
        ('{"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}', "the id 1 occurs twice in 'categories'"),
        ('{"categories": [{"id": 1}]}', "categories, id 1: field 'name' is None"),
        (
            '{"categories": [], "annotations": [], "images": [{"id": 1, "file_name": "a/x.jpg"}, '
            '{"id": 2, "file_name": "a\\\\x.jpg"}]}',
            r"images 1 and 2 both have the file name 'a\\\\x.jpg'",
        ),
    ],
)
def test_what_is_no_coco_file_is_refused(content: str | None, message: str, tmp_path: Path) -> None:
    files = data_set(tmp_path, [])
    files["annotations"].unlink()
    if content is not None:
        files["annotations"].write_text(content)
    with pytest.raises(UserError, match=message):
        coco_parts(**files, split="train", val_images=0, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "valid"}, "unknown split 'valid'; allowed: train, val, test; did you mean 'val'"),
        ({"split": "test"}, "the test split .* is empty"),
        ({"all_images": True, "split_file": Path("x")}, "--split-file and --all-images"),
        ({"split_file": Path("/nowhere")}, r"cannot read '/nowhere' \(--split-file\)"),
        ({"split": "val", "val_images": 0}, "the val split .* is empty"),
        ({"val_images": 2}, r"cannot hold out 2 images \(--val-images\): the file has 1"),
        ({"images": Path("/nowhere")}, "no folder at '/nowhere'"),
        ({"separate": ["weel"]}, "has no category 'weel'.*did you mean 'wheel'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    files = data_set(tmp_path, [annotation(1, 2, [rectangle(2, 3, 10, 4)])])
    with pytest.raises(UserError, match=message):
        coco_parts(**{**files, "split": "train", "val_images": 0, "seed": 0, **options})


@pytest.mark.skipif(not CARPARTS.is_dir(), reason="the car-parts photographs are not at ../shared/data/carparts")
def test_the_car_parts_photographs() -> None:
    def read(split: str) -> list[ImageRecord]:
        return list(
            coco_parts(
                CARPARTS / "annotations.json",
                CARPARTS / "images",
                split=split,
                val_images=50,
                seed=0,
                separate=["wheel"],
            )
        )

    train, val = read("train"), read("val")
    assert (len(train), len(val)) == (350, 50)
    assert not {r.id for r in train} & {r.id for r in val}
    assert all(isinstance(record, ImageRecord) for record in train + val)
    pairs = Counter(target.category for record in train + val for target in record.targets)
    assert pairs["car"] == 400
    assert pairs.total() - 400 == 2959  # (image, category) pairs of the annotations
    assert len(pairs) == 1 + 18
    for target in val[0].targets:
        assert not (decode(target.mask) & ~decode(val[0].targets[0].mask) & 1).any()
