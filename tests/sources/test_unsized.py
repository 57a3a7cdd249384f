"""Annotations that do not say their image's size: photographs turned by EXIF are taken for upright, and counted, or as chosen."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_coco import decode, open_weights
from made_photos import SIZE, STORED, mask_of_box, record_mask, turned_photo
from made_refer import annotation, image_name, ref, write_data
from pycocotools import mask as coco

from mres.errors import UserError
from mres.pixels.upright import ASSUMED, Frame
from mres.records import ImageRecord, RecordError
from mres.shards.writer import WriteOptions, write_shards
from mres.sources.mres_jsonl import mres_jsonl
from mres.sources.refer import refer
from mres.sources.source import NothingLeftError, RecordSource


def corners(orientation: int) -> tuple[list[int], list[int]]:
    """x and y of the box's corners, on the upright picture (1) or on the stored one."""
    ys, xs = mask_of_box(orientation=orientation).nonzero()
    left, right, top, bottom = int(xs.min()), int(xs.max()) + 1, int(ys.min()), int(ys.max()) + 1
    return [left, right, right, left], [top, top, bottom, bottom]


def options(folder: Path, orientation: int, annotations: Any) -> list[str]:
    (folder / "images").mkdir()
    (folder / "images/a.jpg").write_bytes(turned_photo(orientation, "JPEG"))
    (folder / "a.json").write_text(json.dumps(annotations))
    return ["--annotations", str(folder / "a.json"), "--images", str(folder / "images")]


def coco_source(folder: Path, orientation: int, segmentation: Any) -> RecordSource:
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": segmentation}
    images, categories = [{"id": 1, "file_name": "a.jpg"}], [{"id": 1, "name": "box"}]
    value = {"images": images, "categories": categories, "annotations": [annotation]}
    return open_weights("instances", *options(folder, orientation, value))


def polygons(folder: Path, form: str, orientation: int, drawn_on: int) -> RecordSource:
    xs, ys = corners(drawn_on)
    if form == "coco":
        return coco_source(folder, orientation, [[v for point in zip(xs, ys, strict=True) for v in point]])
    shape = {"name": "polygon", "all_points_x": xs, "all_points_y": ys}
    regions = [{"shape_attributes": shape, "region_attributes": {"type": "box"}}]
    return open_weights("via", *options(folder, orientation, {"a": {"filename": "a.jpg", "regions": regions}}))


@pytest.mark.parametrize("form", ["coco", "via"])
@pytest.mark.parametrize("frame", ["auto", "upright", "stored"])
@pytest.mark.parametrize("orientation", STORED)
def test_polygons_lie_on_the_object_and_what_is_assumed_is_counted(
    orientation: int, frame: Frame, form: str, tmp_path: Path
) -> None:
    source = polygons(tmp_path, form, orientation, orientation if frame == "stored" else 1)
    record = replace(source, frame=frame).make(0)
    assert (record.width, record.height) == SIZE
    assert (record_mask(record) == mask_of_box()).all()
    assert source.notes[ASSUMED] == (frame == "auto" and orientation != 1)


@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_run_lengths_say_themselves_what_they_are_of(orientation: int, tmp_path: Path) -> None:
    mask_HW = mask_of_box(orientation=orientation)
    encoded = coco.encode(mask_HW.astype("uint8", order="F"))
    source = coco_source(tmp_path, orientation, {"size": encoded["size"], "counts": encoded["counts"].decode()})
    record = source.make(0)
    assert isinstance(record, ImageRecord)
    assert (decode(record.targets[0].mask) == mask_of_box()).all()
    assert not source.notes[ASSUMED]


def refer_source(folder: Path, drawn_on: int, **size: int) -> RecordSource:
    """One ref, by run lengths drawn on the photograph as EXIF orientation 6 has it stored (6), or upright (1)."""
    encoded = coco.encode(mask_of_box(orientation=drawn_on).astype("uint8", order="F"))
    segmentation = {"size": encoded["size"], "counts": encoded["counts"].decode()}
    images = [{"id": 1, "file_name": image_name(1), **size}]
    write_data(
        folder / "refcoco",
        "refs(unc).p",
        [ref(1, 11, 1, "val", "the box")],
        [annotation(11, 1, segmentation)],
        images=images,
    )
    (folder / "train2014" / image_name(1)).write_bytes(turned_photo(6, "JPEG"))
    return refer(folder, "refcoco", "val", folder / "train2014", accept_counts=True)


@pytest.mark.parametrize("drawn_on", [1, 6])
def test_run_lengths_of_refs_say_it_too(drawn_on: int, tmp_path: Path) -> None:
    source = refer_source(tmp_path, drawn_on)
    (target,) = source.make(0).targets
    assert (decode(target.mask) == mask_of_box()).all()
    with pytest.raises(RecordError, match=r"orientation 6.*--orientation"):
        replace(source, frame="stored" if drawn_on == 1 else "upright").make(0)


def test_of_a_ref_whose_mask_is_not_of_the_size_that_is_said_the_orientation_is_named(tmp_path: Path) -> None:
    width, height = SIZE
    source = refer_source(tmp_path, 6, width=width, height=height)
    with pytest.raises(NothingLeftError):
        source.make(0)
    assert "orientation 6" in source.refused[0]
    assert "ref 1" in source.refused[0]


def test_a_mask_of_the_other_size_names_the_orientation(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(turned_photo(6, "JPEG"))
    (tmp_path / "m.png").write_bytes(turned_photo(1, "PNG"))
    width, height = SIZE
    target = {"id": "t", "granularity": "object", "category": "box", "mask": "m.png", "expressions": ["box"]}
    record = {"id": "a", "image": "a.jpg", "width": height, "height": width, "split": "train", "source": "x"}
    (tmp_path / "r.jsonl").write_text(json.dumps({**record, "targets": [target]}))
    with pytest.raises(RecordError, match=rf"{width}x{height}.*{height}x{width}.*orientation 6"):
        mres_jsonl(tmp_path / "r.jsonl", split=None).make(0)
    again = {**record, "targets": [{**target, "mask": {"size": [height, width], "counts": [width * height]}}]}
    (tmp_path / "r.jsonl").write_text(json.dumps(again))
    with pytest.raises(RecordError, match="orientation 6"):
        mres_jsonl(tmp_path / "r.jsonl", split=None).make(0)


def test_what_is_written_twice_is_named_and_of_no_split(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"id": "a", "split": "train", "split": "val"}\n{"id": "b", "split": "train"}')
    source = mres_jsonl(tmp_path / "r.jsonl", split="train")
    assert source.total == 2
    with pytest.raises(RecordError, match=r"r\.jsonl:1.*'split'"):
        source.make(0)


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [([[8, 6, 2], [32, 6, 2], [32, 22, 2]], "three values"), ([[8, 6, 32, 6]], "three points.*: 1")],
)
def test_what_was_wrong_is_named_when_nothing_is_left(segmentation: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        write_shards(coco_source(tmp_path, 1, segmentation), tmp_path / "set", WriteOptions())
