"""COCO files as annotation tools write them: read, with what they lack or mark in their own way counted."""

import json
from pathlib import Path
from typing import Any

import pytest
from made_coco import HEIGHT, WIDTH, annotation, area_of, by_id, open_weights, rectangle, run_lengths, texts, write_coco
from PIL import Image

from mres.errors import UserError
from mres.records import ImageRecord, RecordError
from mres.sources.source import RecordSource

LEFT, RIGHT = rectangle(2, 3, 10, 4), rectangle(25, 3, 10, 4)
RUNS = {"size": [HEIGHT, WIDTH], "counts": [43, *[4, 16] * 9, 4, 573]}


def files(folder: Path, value: dict[str, Any], *stored: str) -> list[str]:
    """The annotations and their images; the command line's options for them."""
    for name in stored:
        place = folder / "images" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT), (len(name), 0, 0)).save(place, "JPEG")
    (folder / "annotations.json").write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return ["--annotations", str(folder / "annotations.json"), "--images", str(folder / "images")]


def image(id_: Any, file_name: str, **fields: Any) -> dict[str, Any]:
    return {"id": id_, "width": WIDTH, "height": HEIGHT, "file_name": file_name, **fields}


def records(source: RecordSource) -> dict[str, dict[str, str]]:
    """{record's id: {target's id: its first expression}}; a RecordError is raised."""
    found = {}
    for record in source:
        if isinstance(record, RecordError):
            raise record
        found[record.id] = {target.id: texts(target)[0] for target in record.targets}
    return found


def cvat(*annotations: dict[str, Any]) -> dict[str, Any]:
    """CVAT's "COCO 1.0"."""
    own = {"attributes": {"occluded": False}, "area": 40.0, "bbox": [2.0, 3.0, 10.0, 4.0]}
    return {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": {"contributor": "", "date_created": "", "description": "", "url": "", "version": "", "year": ""},
        "categories": [{"id": 1, "name": "car", "supercategory": ""}, {"id": 2, "name": "dog", "supercategory": ""}],
        "images": [image(1, "im.jpg", license=0, flickr_url="", coco_url="", date_captured=0)],
        "annotations": [{**one, **own} for one in annotations],
    }


@pytest.mark.parametrize("drawn", [True, False])
def test_cvats_painted_masks_are_single_instances(drawn: bool, tmp_path: Path) -> None:
    polygon = [annotation(2, 2, [RIGHT], iscrowd=0)] if drawn else []
    options = files(tmp_path, cvat(annotation(1, 1, RUNS, iscrowd=1), *polygon), "im.jpg")
    source = open_weights("instances", *options)
    assert records(source)["im"]["car"] == "the car"
    assert any("iscrowd 1" in note and "CVAT" in note for note in source.notes)
    groups = open_weights("instances", *options, "--crowds", "groups")
    assert records(groups)["im"]["car"] == "the cars"
    assert not any("iscrowd" in note for note in groups.notes)


def test_cocos_crowds_stay_groups_unless_asked_for(tmp_path: Path) -> None:
    items = [annotation(1, 1, run_lengths(20, 0, 10, 10), iscrowd="1"), annotation(2, 2, [LEFT], iscrowd="0")]
    options = write_coco(tmp_path, ["car", "dog"], items)
    assert records(open_weights("instances", *options))["000000000001"] == {"car": "the cars", "dog": "the dog"}
    source = open_weights("instances", *options, "--crowds", "instances")
    assert records(source)["000000000001"]["car"] == "the car"
    assert source.notes == {"masks marked iscrowd 1, read as single instances": 1}


def test_supervisions_masks_with_holes_are_single_instances(tmp_path: Path) -> None:
    value = {
        "info": {},
        "licenses": [{"id": 1, "url": "https://creativecommons.org/licenses/by/4.0/", "name": "CC BY 4.0"}],
        "categories": [{"id": i, "name": n, "supercategory": "common-objects"} for i, n in enumerate(("car", "dog"))],
        "images": [image(1, "im.jpg", license=1, date_captured="11/30/2026,22:54:00")],
        "annotations": [
            {**annotation(1, 0, RUNS), "bbox": [2, 3, 10, 4], "area": 40, "iscrowd": 1},
            {**annotation(2, 1, [RIGHT]), "bbox": [25, 3, 10, 4], "area": 40, "iscrowd": 0},
            {**annotation(3, 1, []), "bbox": [0, 0, 4, 4], "area": 16, "iscrowd": 0},
        ],
    }
    source = open_weights("instances", *files(tmp_path, value, "im.jpg"))
    assert records(source) == {"im": {"car": "the car", "dog": "the dog"}}
    assert source.notes["annotations without a mask, left out"] == 1


def roboflow(*annotations: dict[str, Any], name: str = "car-parts") -> dict[str, Any]:
    """Roboflow's `_annotations.coco.json`: everything counts from 0, and category 0 is the project itself."""
    names = [(name, "none"), ("wheel", name), ("door", name)]
    return {
        "info": {"year": "2026", "version": "1", "description": "Exported from roboflow.com", "contributor": ""},
        "licenses": [{"id": 1, "url": "https://creativecommons.org/licenses/by/4.0/", "name": "CC BY 4.0"}],
        "categories": [{"id": i, "name": n, "supercategory": parent} for i, (n, parent) in enumerate(names)],
        "images": [
            image(i, f"{i}_jpg.rf.0a1b{i}.jpg", license=1, date_captured="2026", extra={"name": f"{i}.jpg"})
            for i in range(2)
        ],
        "annotations": list(annotations),
    }


def test_roboflows_valid_folder_is_a_split_as_it_stands(tmp_path: Path) -> None:
    items = [annotation(0, 1, [LEFT], image=0, bbox=[2, 3, 10, 4]), annotation(1, 2, [], image=0, bbox=[1, 1, 5, 5])]
    options = files(tmp_path, roboflow(*items, name="car"), "0_jpg.rf.0a1b0.jpg", "1_jpg.rf.0a1b1.jpg")
    source = open_weights("coco", *options, "--split", "val", "--all-images")
    (record,) = source
    assert isinstance(record, ImageRecord)
    assert (record.id, record.split, list(by_id(record))) == ("0_jpg.rf.0a1b0.jpg", "val", ["car", "wheel"])
    assert source.description["all_images"] is True
    assert source.notes == {"images without annotations, left out": 1, "annotations without a mask, left out": 1}


def test_a_category_called_as_the_whole_is_named(tmp_path: Path) -> None:
    items = [annotation(0, 0, [LEFT], image=0), annotation(1, 1, [RIGHT], image=0)]
    options = files(tmp_path, roboflow(*items, name="Car"), "0_jpg.rf.0a1b0.jpg")
    with pytest.raises(UserError, match=r"has a category 'Car'.* \(--whole\); .*--whole other"):
        open_weights("coco", *options, "--split", "train", "--val-images", "0")
    source = open_weights("coco", *options, "--split", "train", "--all-images", "--whole", "vehicle")
    assert list(records(source)["0_jpg.rf.0a1b0.jpg"]) == ["vehicle", "Car", "wheel"]


def test_label_studio_on_windows(tmp_path: Path) -> None:
    value = {
        "images": [
            image(0, "..\\..\\label-studio\\media\\upload\\4\\f3-Capture_décran.jpg"),
            image(1, "/data/local-files/?d=images/my%20photo.jpg"),
        ],
        "categories": [{"id": 0, "name": "car"}],
        "annotations": [
            {**annotation(i, 0, [LEFT], image=i), "ignore": 0, "iscrowd": 0, "area": 40, "bbox": [2, 3, 10, 4]}
            for i in range(2)
        ],
        "info": {"year": 2026, "version": "1.0", "description": "", "contributor": "Label Studio", "url": ""},
    }
    source = open_weights("instances", *files(tmp_path, value, "f3-Capture_décran.jpg", "my photo.jpg"))
    assert list(records(source)) == ["f3-Capture_décran", "my%20photo"]


def test_detectron2s_predictions_and_keypoints(tmp_path: Path) -> None:
    value = {
        "info": {"date_created": "2026-11-30", "description": "Automatically generated COCO json file for Detectron2."},
        "licenses": None,
        "images": [image(0, "/datasets/set/im.jpg"), image(1, "/datasets/set/other.jpg")],
        "categories": [{"id": 0, "name": "person"}],
        "annotations": [
            {**annotation(1, 0, run_lengths(2, 3, 10, 4), image=0), "area": 40.0, "bbox": [2.0, 3.0, 10.0, 4.0],
             "keypoints": [1, 2, 2], "num_keypoints": 1, "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 0, "bbox": [1, 1, 4, 4], "keypoints": [1, 2, 2]},
        ],
    }  # fmt: skip
    source = open_weights("instances", *files(tmp_path, value, "im.jpg", "other.jpg"))
    assert records(source) == {"im": {"person": "the person"}}
    assert source.notes["images whose annotations have no mask, left out"] == 1
    assert source.notes["annotations without a mask, left out"] == 1


def test_ids_and_sizes_that_went_through_a_table_program(tmp_path: Path) -> None:
    value = {
        "images": [{**image("7", "a.jpg"), "width": 40.0, "height": "20"}, image(8.0, "b.jpg")],
        "categories": [{"id": "0", "name": "car"}],
        "annotations": [
            annotation(1, 0, [PAIRS], image=7),  # type: ignore[list-item]
            {**annotation(0, 0, float("nan")), "id": 2.0, "image_id": "8.0", "category_id": 0.0},
            {**annotation(0, 0, [LEFT]), "id": "3", "image_id": "8", "category_id": "0"},
        ],
    }
    for image_entry in value["images"][1:]:
        del image_entry["width"], image_entry["height"]  # the picture knows
    for form, options in (("instances", []), ("coco", ["--split", "train", "--all-images", "--whole", ""])):
        source = open_weights(form, *files(tmp_path, value, "a.jpg", "b.jpg"), *options)
        assert [area_of(record.targets[0]) for record in source if isinstance(record, ImageRecord)] == [40, 40]
        assert source.notes == {"annotations without a mask, left out": 1}


PAIRS = [[2, 3], [12, 3], [12, 7], [2, 7]]


def test_ids_that_do_not_match_are_named(tmp_path: Path) -> None:
    items = [annotation(1, 1, [LEFT], image="im0"), annotation(2, 1, [LEFT], image=None)]  # type: ignore[arg-type]
    options = write_coco(tmp_path, ["car"], items)
    with pytest.raises(
        UserError, match=r"no annotated image \(1 images\); .*2 errors:\n.*image 'im0' is not in .*\n.*None"
    ):
        open_weights("instances", *options)
