"""LabelMe, VIA, Supervisely, VOC and label maps: files as the tools write them, read with the pixels that they mean."""

import base64
import contextlib
import copy
import io
import json
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from made_coco import by_id, decode, only_record, open_weights, texts
from PIL import Image

from mres.errors import UserError
from mres.records import ImageRecord, RecordError
from mres.shards.check import check_record
from mres.sources.coco_masks import KEPT_EMPTY
from mres.sources.source import NothingLeftError, RecordSource

HEIGHT, WIDTH = 20, 40


def picture(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 100, 110)).save(path)
    return path


def encoded(image: Image.Image) -> bytes:
    with io.BytesIO() as buffer:
        image.save(buffer, "PNG")
        return buffer.getvalue()


def area(record: ImageRecord, id_: str) -> int:
    return int(decode(by_id(record)[id_].mask).sum())


def checked(source: RecordSource) -> ImageRecord:
    record = only_record(source)
    check_record(record, "here")
    return record


def error_of(source: RecordSource) -> str:
    (item,) = source
    assert isinstance(item, RecordError), item
    return str(item)


# --- LabelMe ---------------------------------------------------------------------------------------------------------


def shape(label: str, kind: str, points: list[list[float]], **fields: Any) -> dict[str, Any]:
    """As LabelMe 5 writes it."""
    return {
        "label": label, "points": points, "group_id": None, "description": "", "shape_type": kind, "flags": {}, "mask": None,
        **fields,
    }  # fmt: skip


BLOB = base64.b64encode(encoded(Image.new("1", (5, 4), 1))).decode()
SHAPES = [
    shape("car", "rectangle", [[12.0, 10.0], [2.0, 4.0]]),
    shape("wheel", "circle", [[30.0, 10.0], [34.0, 10.0]]),
    shape("dog", "mask", [[20.0, 2.0], [24.0, 5.0]], mask=BLOB),
    shape("cat", "polygon", [[0, 0], [4, 0], [4, 4], [0, 4]], group_id=1),
    shape("cat", "polygon", [[6, 0], [8, 0], [8, 4], [6, 4]], group_id=1, description="the grey cat behind the bar"),
    shape("pole", "linestrip", [[0, 0], [4, 4]]),
]


def labelme_file(folder: Path, shapes: list[dict[str, Any]], name: str = "a.json", **fields: Any) -> Path:
    value = {
        "version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": "a.jpg", "imageData": None,
        "imageHeight": HEIGHT, "imageWidth": WIDTH, **fields,
    }  # fmt: skip
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(value, indent=2))
    return folder / name


def test_labelme_shapes_are_the_pixels_that_they_enclose(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    labelme_file(tmp_path, SHAPES)
    source = open_weights("labelme", "--annotations", str(tmp_path))
    record = checked(source)
    assert record.id == "a"
    assert (area(record, "car"), area(record, "dog"), area(record, "cat")) == (60, 20, 24)
    assert abs(area(record, "wheel") - np.pi * 16) < 4
    assert by_id(record)["car"].box == (2, 4, 10, 6)
    assert by_id(record)["dog"].box == (20, 2, 5, 4)
    assert texts(by_id(record)["car"]) == ["the car", "car"]
    (said,) = [t for t in record.targets if "the grey cat behind the bar" in texts(t)]
    assert int(decode(said.mask).sum()) == 24
    assert source.notes["lines and points, left out"] == 1


def test_labelme_instances_and_parts_are_told_apart(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    boxes = [[[0, 0], [8, 18]], [[30, 0], [38, 18]]]
    shapes = [shape("car", "rectangle", points) for points in boxes]
    shapes.append(shape("car:wheel", "rectangle", [[31, 10], [35, 16]]))
    labelme_file(tmp_path, shapes)
    record = checked(open_weights("labelme", "--annotations", str(tmp_path)))
    said = {text: target for target in record.targets for text in texts(target)}
    assert said["the right car"].box == (30, 0, 8, 18)
    assert said["the wheel of the right car"].parent == said["the right car"].id
    assert said["the cars"].box == (0, 0, 38, 18)


COCO = {"images": [], "annotations": [], "categories": []}
SUPERVISELY = {"size": {"height": 4, "width": 4}, "objects": []}
VIA = {"a.jpg1": {"filename": "a.jpg", "regions": []}}
LABELME = {"shapes": [], "imagePath": "a.jpg", "imageHeight": 4, "imageWidth": 4}


@pytest.mark.parametrize("asked", ["labelme", "supervisely", "via", "instances"])
def test_json_of_another_tool_is_called_by_its_name(asked: str, tmp_path: Path) -> None:
    values = {"instances": COCO, "supervisely": SUPERVISELY, "via": VIA, "labelme": LABELME}
    for reader in values.keys() - {asked}:
        folder = tmp_path / reader / "ann"
        folder.mkdir(parents=True)
        file = folder / "a.json"
        file.write_text(json.dumps(values[reader]))
        given = {"labelme": ["--annotations", str(folder)], "supervisely": ["--root", str(tmp_path / reader)]}
        options = given.get(asked, ["--annotations", str(file), "--images", str(tmp_path)])
        if asked in given:
            message = error_of(open_weights(asked, *options))
        else:
            with pytest.raises(UserError) as caught:
                open_weights(asked, *options)
            message = str(caught.value)
        assert str(file) in message
        assert f"`{reader}`" in message


def test_a_description_is_an_expression_of_its_shape_and_a_described_part_knows_its_object(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    described = {"description": "the car I sold"}
    boxes = [[[0, 0], [8, 18]], [[12, 0], [22, 18]], [[30, 0], [38, 18]]]
    shapes = [
        shape("dog", "rectangle", [[23, 0], [28, 9]], description="the dog"),
        shape("dog:tail", "rectangle", [[24, 1], [26, 3]], description="its tail"),
        *(shape("car", "rectangle", points, **described) for points in boxes),
        shape("car:wheel", "rectangle", [[13, 10], [16, 16]], description="a flat tyre"),
        shape("car:wheel", "rectangle", [[18, 10], [21, 16]]),
    ]
    labelme_file(tmp_path, shapes)
    record = checked(open_weights("labelme", "--annotations", str(tmp_path)))
    dog, tail = by_id(record)["dog"], by_id(record)["dog:tail"]
    assert texts(dog) == ["the dog", "dog"]
    assert (texts(tail)[-1], tail.expressions[-1].kind, tail.parent) == ("its tail", "", "dog")
    sold = {target.box[0]: target for target in record.targets if "the car I sold" in texts(target)}
    assert sorted(sold) == [0, 12, 30]
    assert texts(sold[0])[:-1] == [text for text in texts(sold[0]) if "left" in text]
    assert texts(sold[12]) == ["the car I sold"]
    (tyre,) = (target for target in record.targets if "a flat tyre" in texts(target))
    assert (texts(tyre), tyre.box, tyre.parent) == (["a flat tyre"], (13, 10, 3, 6), sold[12].id)


def test_one_group_of_two_labels_is_two_instances(tmp_path: Path) -> None:
    """Each has its own parts, though their ids are one."""
    picture(tmp_path / "a.jpg")
    labels = {"car": [[0, 0], [8, 18]], "bus": [[30, 0], [38, 18]], "car:wheel": [[1, 10], [5, 16]]}
    labelme_file(tmp_path, [shape(label, "rectangle", points, group_id=1) for label, points in labels.items()])
    record = checked(open_weights("labelme", "--annotations", str(tmp_path)))
    assert {t.category: t.parent for t in record.targets} == {"car": None, "car:wheel": "car", "bus": None}


def test_what_has_no_region_is_passed_over_and_what_has_no_pixel_is_kept_where_it_is_evaluated(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    labelme_file(tmp_path, [])
    source = open_weights("labelme", "--annotations", str(tmp_path))
    (nothing,) = source
    assert isinstance(nothing, NothingLeftError)
    assert source.notes["images without a region that has a label and a pixel, left out"] == 1
    labelme_file(tmp_path, [*SHAPES[:1], shape("bus", "rectangle", [[50, 2], [60, 8]])])
    assert [t.category for t in checked(open_weights("labelme", "--annotations", str(tmp_path))).targets] == ["car"]
    held_out = open_weights("labelme", "--annotations", str(tmp_path), "--split", "val")
    assert area(checked(held_out), "bus") == 0
    assert held_out.notes[KEPT_EMPTY] == 1


@pytest.mark.parametrize("path", ["..\\images\\a.jpg", "../images/a.jpg", "C:\\Users\\me\\images\\a.jpg"])
def test_labelme_images_elsewhere(tmp_path: Path, path: str) -> None:
    picture(tmp_path / "images/a.jpg")
    labelme_file(tmp_path / "json", SHAPES, imagePath=path)
    source = open_weights("labelme", "--annotations", str(tmp_path / "json"), "--images", str(tmp_path / "images"))
    assert checked(source).width == WIDTH
    assert "a.jpg" in error_of(open_weights("labelme", "--annotations", str(tmp_path / "json")))


def test_labelme_annotations_in_folders_beside_their_images(tmp_path: Path) -> None:
    """Several of one image, too; what leaves the folder is found by its bare name within it, or not at all."""
    picture(tmp_path / "set/a.jpg")
    for place, path in (("x/1.json", "../a.jpg"), ("y/z/2.json", "..\\..\\a.jpg"), ("y/3.json", "../x/../a.jpg")):
        labelme_file(tmp_path / "set", SHAPES, place, imagePath=path)
    records = list(open_weights("labelme", "--annotations", str(tmp_path / "set")))
    assert [one.image == (tmp_path / "set/a.jpg").read_bytes() for one in records if isinstance(one, ImageRecord)] == [
        True
    ] * 3
    picture(tmp_path / "b.jpg")
    labelme_file(tmp_path / "other", SHAPES, "x/b.json", imagePath="../../b.jpg")
    assert "b.jpg" in error_of(open_weights("labelme", "--annotations", str(tmp_path / "other")))


def test_labelme_embedded_images_need_no_file(tmp_path: Path) -> None:
    content = picture(tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").unlink()
    labelme_file(tmp_path, SHAPES, imageData=base64.b64encode(content).decode())
    assert checked(open_weights("labelme", "--annotations", str(tmp_path))).image == content


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"imageHeight": None}, ["a.json", "imageHeight"]),
        ({"imageHeight": 10**400}, ["imageHeight"]),
        ({"imageHeight": HEIGHT + 1}, [f"{WIDTH}x{HEIGHT + 1}"]),
        ({"imageData": "???"}, ["imageData"]),
        ({"imagePath": None}, ["imagePath", "imageData"]),
        ({"shapes": {}}, ["a.json", "shapes"]),
        ({"shapes": [shape("car", "polygn", [])]}, ["shapes[0]", "did you mean 'polygon'"]),
        ({"shapes": [shape("car", "polygon", [[0, "x"]])]}, ["shapes[0]", "points"]),
        ({"shapes": [shape("car", "circle", [[0, 1]])]}, ["shapes[0]", "circle"]),
        ({"shapes": [shape("car", "mask", [[0, 1]], mask="AAAA")]}, ["shapes[0]", "bitmap"]),
        ({"shapes": [shape(None, "rectangle", [[0, 1], [3, 3]])]}, ["region 0", "label"]),  # type: ignore[arg-type]
        ({"shapes": [shape(" ", "rectangle", [[0, 1], [3, 3]])]}, ["region 0", "label"]),
        ({"shapes": [shape("car", "polygon", [[0, 0], [1e300, 1], [1, 9]])]}, ["shapes[0]"]),
    ],
)
def test_labelme_says_what_is_wrong_with_a_file(tmp_path: Path, fields: dict[str, Any], words: list[str]) -> None:
    picture(tmp_path / "a.jpg")
    labelme_file(tmp_path, **{"shapes": SHAPES, **fields})
    source = open_weights("labelme", "--annotations", str(tmp_path))
    with pytest.raises(RecordError) as caught:
        checked(source)
    for word in words:
        assert word in str(caught.value)


def test_a_broken_json_is_one_record(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    labelme_file(tmp_path, SHAPES)
    (tmp_path / "b.json").write_text("{" * 100)
    good, bad = open_weights("labelme", "--annotations", str(tmp_path))
    assert isinstance(good, ImageRecord)
    assert isinstance(bad, RecordError)
    assert "b.json" in str(bad)
    with pytest.raises(UserError, match="--annotations"):
        open_weights("labelme", "--annotations", str(tmp_path / "nothing"))


# --- VIA -------------------------------------------------------------------------------------------------------------

VIA_REGIONS = [
    {
        "shape_attributes": {"name": "rect", "x": 2, "y": 4, "width": 10, "height": 6},
        "region_attributes": {"type": "car"},
    },
    {
        "shape_attributes": {"name": "polygon", "all_points_x": [20, 25, 25, 20], "all_points_y": [2, 2, 6, 6]},
        "region_attributes": {"type": "dog"},
    },
    {"shape_attributes": {"name": "circle", "cx": 32, "cy": 10, "r": 4}, "region_attributes": {"type": "ball"}},
    {
        "shape_attributes": {"name": "ellipse", "cx": 10, "cy": 15, "rx": 6, "ry": 2, "theta": 0},
        "region_attributes": {"type": {"cat": True}},
    },
    {"shape_attributes": {"name": "point", "cx": 1, "cy": 1}, "region_attributes": {"type": "x"}},
    {"shape_attributes": {"name": "rect", "x": 0, "y": 0, "width": 2, "height": 2}, "region_attributes": {}},
]


def via_source(folder: Path, regions: Any, *options: str, project: bool = False) -> RecordSource:
    """An export of VIA 2, or its project file."""
    picture(folder / "images/a.jpg")
    entry = {"filename": "a.jpg", "size": 1234, "regions": regions, "file_attributes": {}}
    value: dict[str, Any] = {"a.jpg1234": entry, "b.jpg99": {**entry, "filename": "b.jpg", "regions": []}}
    if project:
        value = {
            "_via_settings": {},
            "_via_img_metadata": value,
            "_via_attributes": {},
            "_via_data_format_version": "2.0.10",
        }
    (folder / "via.json").write_text(json.dumps(value))
    return open_weights("via", "--annotations", str(folder / "via.json"), "--images", str(folder / "images"), *options)


@pytest.mark.parametrize("form", ["export", "project", "of version 1"])
def test_via_shapes_are_the_pixels_that_they_enclose(tmp_path: Path, form: str) -> None:
    regions = {str(n): r for n, r in enumerate(VIA_REGIONS)} if form == "of version 1" else VIA_REGIONS
    source = via_source(tmp_path, regions, project=form == "project")
    record = checked(source)
    assert (area(record, "car"), area(record, "dog")) == (60, 20)
    assert abs(area(record, "ball") - np.pi * 16) < 4
    assert abs(area(record, "cat") - np.pi * 12) < 5
    assert by_id(record)["cat"].box[2] > 2 * by_id(record)["cat"].box[3]
    assert source.notes["images without regions, left out"] == 1
    assert source.notes["regions without a value of 'type', left out"] == 1
    assert source.notes["lines and points, left out"] == 1


def test_via_asks_which_attribute_is_the_label(tmp_path: Path) -> None:
    regions = copy.deepcopy(VIA_REGIONS[:1])
    regions[0]["region_attributes"]["colour"] = "red"
    with pytest.raises(UserError, match=r"colour, type.*--label"):
        via_source(tmp_path, regions)
    assert [t.category for t in checked(via_source(tmp_path, regions, "--label", "type")).targets] == ["car"]
    with pytest.raises(UserError, match="did you mean 'type'"):
        via_source(tmp_path, regions, "--label", "typ")


@pytest.mark.parametrize(
    ("attributes", "word"),
    [
        ({"name": "rect", "x": 1, "y": 2, "width": "x", "height": 3}, "points"),
        ({"name": "polygon", "all_points_x": [1, 2], "all_points_y": [1]}, "all_points_x"),
        ({"name": "polgon"}, "did you mean 'polygon'"),
        (None, "shape_attributes"),
    ],
)
def test_via_says_what_is_wrong_with_a_region(tmp_path: Path, attributes: Any, word: str) -> None:
    source = via_source(tmp_path, [{"shape_attributes": attributes, "region_attributes": {"type": "car"}}])
    message = error_of(source)
    assert word in message
    assert "regions[0]" in message


@pytest.mark.parametrize("value", [[], {}, {"project": {}, "metadata": {}}, {"images": [], "annotations": []}])
def test_what_is_not_via_is_refused(tmp_path: Path, value: Any) -> None:
    (tmp_path / "via.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match="not JSON of VIA"):
        open_weights("via", "--annotations", str(tmp_path / "via.json"), "--images", str(tmp_path))


# --- Supervisely -----------------------------------------------------------------------------------------------------

BITMAP = np.array([[0, 255, 255], [255, 255, 0]], np.uint8)


def bitmap(origin: Any = (20, 2)) -> dict[str, Any]:
    data = base64.b64encode(zlib.compress(encoded(Image.fromarray(BITMAP)))).decode()
    return {
        "id": 1, "classId": 2, "geometryType": "bitmap", "classTitle": "dog", "tags": [], "labelerLogin": "me",
        "bitmap": {"data": data, "origin": list(origin)},
    }  # fmt: skip


def figure(kind: str, title: str, exterior: Any, interior: Any = ()) -> dict[str, Any]:
    return {"geometryType": kind, "classTitle": title, "points": {"exterior": exterior, "interior": list(interior)}}


def supervisely_source(folder: Path, objects: Any, **fields: Any) -> RecordSource:
    picture(folder / "ds0/img/a.jpg")
    (folder / "ds0/ann").mkdir(exist_ok=True)
    (folder / "meta.json").write_text(
        json.dumps({"classes": [{"title": "dog", "shape": "bitmap", "color": "#FF0000"}]})
    )
    value = {"description": "", "tags": [], "size": {"height": HEIGHT, "width": WIDTH}, "objects": objects, **fields}
    (folder / "ds0/ann/a.jpg.json").write_text(json.dumps(value))
    return open_weights("supervisely", "--root", str(folder))


def test_supervisely_bitmaps_holes_and_boxes(tmp_path: Path) -> None:
    hole = [[4, 6], [8, 6], [8, 10], [4, 10]]
    objects = [
        bitmap(),
        figure("polygon", "car", [[2, 4], [12, 4], [12, 14], [2, 14]], [hole]),
        figure("rectangle", "cat", [[30, 2], [36, 8]]),
        figure("point", "x", [[1, 1]]),
    ]
    source = supervisely_source(tmp_path, objects)
    record = checked(source)
    assert record.id == "a"
    assert (area(record, "car"), area(record, "cat")) == (100 - 16, 36)
    dog_HW = decode(by_id(record)["dog"].mask)
    assert (dog_HW[2:4, 20:23] == (BITMAP > 0)).all()
    assert dog_HW.sum() == 4
    assert source.notes["objects of the geometry point, left out"] == 1


def test_supervisely_bitmaps_that_reach_out_are_clipped_and_counted(tmp_path: Path) -> None:
    source = supervisely_source(tmp_path, [bitmap((-1, 19))])
    assert area(checked(source), "dog") == 2
    assert source.notes["masks clipped to their image"] == 1


@pytest.mark.parametrize(
    ("objects", "words"),
    [
        ([{**bitmap(), "bitmap": {"data": "AAAA", "origin": [0, 0]}}], ["objects[0]", "bitmap.data"]),
        ([{**bitmap(), "bitmap": {"data": "AAAA"}}], ["objects[0]", "origin"]),
        ([{**bitmap(), "bitmap": None}], ["objects[0]"]),
        ([figure("poligon", "car", [])], ["objects[0]", "did you mean 'polygon'"]),
        ([figure("rectangle", "car", [[1, 1]])], ["objects[0]", "rectangle"]),
        ([figure("polygon", None, [[2, 4], [12, 4], [12, 14]])], ["label"]),  # type: ignore[arg-type]
        (None, ["objects"]),
    ],
)
def test_supervisely_says_what_is_wrong_with_a_file(tmp_path: Path, objects: Any, words: list[str]) -> None:
    message = error_of(supervisely_source(tmp_path, objects))
    for word in ("a.jpg.json", *words):
        assert word in message


def test_supervisely_bombs_cost_little(tmp_path: Path) -> None:
    bomb = base64.b64encode(zlib.compress(bytes(80 << 20), 1)).decode()
    assert "bitmap" in error_of(
        supervisely_source(tmp_path, [{**bitmap(), "bitmap": {"data": bomb, "origin": [0, 0]}}])
    )


# --- label maps and VOC ----------------------------------------------------------------------------------------------


def palette(labels_HW: np.ndarray) -> Image.Image:
    """A palette PNG as VOC's: colours by bits of the number, 255 nearly white."""
    colours = np.zeros((256, 3), np.uint8)
    for number in range(256):
        for bit in range(8):
            for channel in range(3):
                colours[number, channel] |= ((number >> (3 * bit + channel)) & 1) << (7 - bit)
    image = Image.fromarray(labels_HW.astype(np.uint8), "L").convert("P")
    image.putdata(labels_HW.astype(np.uint8).ravel().tolist())
    image.putpalette(colours.ravel().tolist())
    return image


LABELS_HW = np.zeros((HEIGHT, WIDTH), np.uint8)
LABELS_HW[2:8, 2:10] = 1
LABELS_HW[2:8, 30:38] = 2
LABELS_HW[9, :] = 255
NAMES = ["background", "road", "fire hydrant"]
COLOURS = {0: (0, 0, 0), 1: (128, 64, 128), 2: (64, 0, 192), 255: (255, 255, 255)}


def labelmap_source(
    folder: Path, image: Image.Image, names: str, *options: str, name: str = "names.txt"
) -> RecordSource:
    picture(folder / "images/town_0_leftImg8bit.png")
    (folder / "masks").mkdir(exist_ok=True)
    image.save(folder / "masks/town_0_gtFine_labelIds.PNG")
    (folder / name).write_text(names)
    paths = ("--masks", str(folder / "masks"), "--images", str(folder / "images"), "--names", str(folder / name))
    suffixes = ("--mask-suffix", "_gtFine_labelIds", "--image-suffix", "_leftImg8bit")
    return open_weights("labelmap", *paths, *suffixes, *options)


def coloured() -> Image.Image:
    rgb_HWC = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for value, colour in COLOURS.items():
        rgb_HWC[value == LABELS_HW] = colour
    return Image.fromarray(rgb_HWC)


@pytest.mark.parametrize(
    ("image", "names", "name"),
    [
        (Image.fromarray(LABELS_HW), "\n".join(NAMES), "names.txt"),
        (palette(LABELS_HW), "\n".join(NAMES), "names.txt"),
        (Image.fromarray(LABELS_HW.astype(np.uint16)), "0 background\n1 road\n2 fire hydrant\n", "names.txt"),
        (Image.fromarray(np.stack([LABELS_HW] * 3, -1)), "name,id\nbackground,0\nroad,1\nfire hydrant,2", "names.csv"),
        (Image.fromarray(LABELS_HW), "__ignore__\n_background_\nroad\nfire hydrant\n", "class_names.txt"),
        (Image.fromarray(LABELS_HW), json.dumps(NAMES), "names.json"),
        (palette(LABELS_HW), json.dumps({str(n): name for n, name in enumerate(NAMES)}), "names.json"),
        (Image.fromarray(LABELS_HW), json.dumps({name: n for n, name in enumerate(NAMES)}), "names.json"),
        (coloured(), "name,r,g,b\nbackground,0,0,0\nroad,128,64,128\nfire hydrant,64,0,192\nvoid,255,255,255", "class_dict.csv"),
        (coloured(), "0 0 0\tbackground\n128 64 128\troad\n64 0 192\tfire hydrant\n255 255 255 Void", "label_colors.txt"),
        (coloured(), "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:128,64,128::\nfire hydrant:64,0,192::\n"
                     "ignored:255,255,255::", "labelmap.txt"),
        (coloured(), json.dumps({"road": [128, 64, 128], "fire hydrant": [64, 0, 192], "void": [255] * 3, "_x": [0] * 3}),
         "names.json"),
    ],
    ids=["grey", "palette", "16 bits", "grey as colour", "LabelMe", "list", "numbers", "names", "csv", "CamVid", "CVAT", "colours"],
)  # fmt: skip
def test_every_form_of_a_label_map_is_the_same_masks(tmp_path: Path, image: Image.Image, names: str, name: str) -> None:
    record = checked(labelmap_source(tmp_path, image, names, name=name))
    assert record.id == "town_0_leftImg8bit"
    found = {t.category: t for t in record.targets}
    assert set(found) == {"road", "fire hydrant"}
    assert (decode(found["road"].mask) == (LABELS_HW == 1)).all()
    assert (decode(found["fire hydrant"].mask) == (LABELS_HW == 2)).all()
    assert texts(found["fire hydrant"]) == ["fire hydrant", "all of the fire hydrant"]


def masks_of(record: ImageRecord) -> dict[str, np.ndarray]:
    """By what is said of them, all of it once."""
    said = [(text, decode(target.mask)) for target in record.targets for text in texts(target)]
    assert len(dict(said)) == len(said)
    return dict(said)


@pytest.mark.parametrize(
    ("image", "names"),
    [
        (Image.fromarray(LABELS_HW), "background\nfence\nfence"),
        (Image.fromarray(LABELS_HW), "background\nFence\nfence (wood)"),
        (coloured(), "fence,128,64,128\nfence,64,0,192\nvoid,255,255,255\nbackground,0,0,0"),
    ],
    ids=["one name", "one in words", "colours"],
)
def test_values_of_one_name_are_one_mask(tmp_path: Path, image: Image.Image, names: str) -> None:
    source = labelmap_source(tmp_path, image, names)
    masks = masks_of(checked(source))
    assert set(masks) == {"fence", "all of the fence"}
    assert (masks["fence"] == np.isin(LABELS_HW, (1, 2))).all()
    assert [num for note, num in source.notes.items() if "one mask" in note] == [1]


def test_parts_of_one_name_say_of_what_they_are(tmp_path: Path) -> None:
    masks = masks_of(checked(labelmap_source(tmp_path, Image.fromarray(LABELS_HW), "void\ncar:wheel\nbus:wheel")))
    assert (masks["wheel of the car"] == (LABELS_HW == 1)).all()
    assert (masks["wheel of the bus"] == (LABELS_HW == 2)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_label_map_that_was_stored_turned_is_turned_upright_like_its_image(tmp_path: Path, orientation: int) -> None:
    for number, (image, names) in enumerate([(palette(LABELS_HW), "\n".join(NAMES)), (coloured(), json.dumps(
        {"road": [128, 64, 128], "fire hydrant": [64, 0, 192], "void": [255] * 3, "_": [0] * 3}
    ))]):  # fmt: skip
        folder = tmp_path / str(number)
        labelmap_source(folder, image, names, name=("n.txt", "n.json")[number])
        for place in (folder / "masks").iterdir(), (folder / "images").iterdir():
            save_turned(next(place), orientation)
        source = labelmap_source_again(folder, "--names", str(folder / ("n.txt", "n.json")[number]))
        record = checked(source)
        assert (record.width, record.height) == (WIDTH, HEIGHT)
        assert (masks_of(record)["road"] == (LABELS_HW == 1)).all()


def save_turned(place: Path, orientation: int) -> None:
    """The picture as a camera stores it, with the EXIF that turns it back."""
    upside = Image.Transpose
    inverse = {
        2: upside.FLIP_LEFT_RIGHT, 3: upside.ROTATE_180, 4: upside.FLIP_TOP_BOTTOM, 5: upside.TRANSPOSE, 6: upside.ROTATE_90,
        7: upside.TRANSVERSE, 8: upside.ROTATE_270,
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x112] = orientation
    with Image.open(place) as image:
        stored = image.transpose(inverse[orientation]) if orientation > 1 else image.copy()
    stored.save(place, "PNG", exif=exif)


def grey_png(labels_HW: np.ndarray, bits: int, channels: int = 1) -> bytes:
    """As the specification has it; Pillow writes none of 2 or 4 bits."""
    height, width = labels_HW.shape
    rows = np.unpackbits(np.repeat(labels_HW.astype(">u2"), channels, 1).view(np.uint8).reshape(height, -1, 2), axis=2)
    packed = np.packbits(rows[..., 16 - bits :].reshape(height, -1), axis=1)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, bits, 0 if channels == 1 else 2, 0, 0, 0),
        b"IDAT": zlib.compress(b"".join(b"\0" + row.tobytes() for row in packed)),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_values_of_few_bits_are_the_numbers_that_are_stored(tmp_path: Path, bits: int) -> None:
    labels_HW = np.where(LABELS_HW == 255, 0, LABELS_HW.astype(int)) % 2**bits
    labels_HW[0, 0] = min(2**bits - 1, 200)
    names = [f"class{number}" for number in range(256)]
    labelmap_source(tmp_path, Image.fromarray(LABELS_HW), "\n".join(names))
    (place,) = (tmp_path / "masks").iterdir()
    place.write_bytes(grey_png(labels_HW, bits))
    masks = masks_of(checked(labelmap_source_again(tmp_path)))
    assert set(masks) == {text for n in np.unique(labels_HW) for text in (f"class{n}", f"all of the class{n}")}
    for number in np.unique(labels_HW):
        assert (masks[f"class{number}"] == (labels_HW == number)).all()


def test_numbers_that_pillow_would_cut_are_refused(tmp_path: Path) -> None:
    labelmap_source(tmp_path, Image.fromarray(LABELS_HW), "\n".join(NAMES))
    (place,) = (tmp_path / "masks").iterdir()
    place.write_bytes(grey_png(LABELS_HW, 16, channels=3))
    assert "16 bits" in error_of(labelmap_source_again(tmp_path))


@pytest.mark.parametrize(
    ("names", "first"),
    [
        ("#bg\nroad\nhydrant", "#bg"),
        ("# what they are\n#\n\n_bg\n#2 road\nhydrant\n\n", "#2 road"),
        ("#id name\n0 _bg\n# the streets\n1 road\n2 hydrant", "road"),
    ],
)
def test_only_a_hash_with_a_blank_begins_a_comment(tmp_path: Path, names: str, first: str) -> None:
    masks = masks_of(checked(labelmap_source(tmp_path, Image.fromarray(LABELS_HW), names)))
    assert (masks["hydrant"] == (LABELS_HW == 2)).all()
    assert first in masks


@pytest.mark.parametrize("names", ["background\n\nroad\ncar", "0 background\n1 road\ncar", "0 void\n#one\n1 road"])
def test_names_whose_numbers_are_not_clear_are_refused(tmp_path: Path, names: str) -> None:
    with pytest.raises(UserError, match="--names"):
        labelmap_source(tmp_path, Image.fromarray(LABELS_HW), names)


def test_a_value_without_a_name_is_named(tmp_path: Path) -> None:
    image = Image.fromarray(LABELS_HW)
    assert "values without a name: 2" in error_of(labelmap_source(tmp_path, image, "background\nroad"))
    assert "values without a name: 255" in error_of(labelmap_source(tmp_path, image, "\n".join(NAMES), "--ignore", "7"))
    assert "#ffffff" in error_of(labelmap_source(tmp_path, coloured(), "0 0 0 x\n128 64 128 road\n64 0 192 y"))
    assert "colours" in error_of(labelmap_source(tmp_path, coloured(), "\n".join(NAMES)))


@pytest.mark.parametrize("names", ["", "a\n\n", '{"0": 1.5', "0 road\n0 sky"])
def test_names_that_are_none_are_refused(tmp_path: Path, names: str) -> None:
    if names == "a\n\n":
        assert "without a name" in error_of(labelmap_source(tmp_path, Image.fromarray(LABELS_HW), names))
        return
    with pytest.raises(UserError, match="--names"):
        labelmap_source(
            tmp_path, Image.fromarray(LABELS_HW), names, name="n.json" if names.startswith("{") else "n.txt"
        )


def test_a_map_of_another_size_or_without_an_image_is_named(tmp_path: Path) -> None:
    source = labelmap_source(tmp_path, Image.fromarray(LABELS_HW[:-1]), "\n".join(NAMES))
    with pytest.raises(RecordError, match=f"{WIDTH}x{HEIGHT}"):
        checked(source)
    (tmp_path / "images/town_0_leftImg8bit.png").unlink()
    assert "town_0_leftImg8bit" in error_of(labelmap_source_again(tmp_path))
    with pytest.raises(UserError, match="--mask-suffix"):
        labelmap_source_again(tmp_path, "--mask-suffix", "_x")


def labelmap_source_again(folder: Path, *options: str) -> RecordSource:
    paths = ("--masks", str(folder / "masks"), "--images", str(folder / "images"), "--names", str(folder / "names.txt"))
    return open_weights(
        "labelmap", *paths, "--mask-suffix", "_gtFine_labelIds", "--image-suffix", "_leftImg8bit", *options
    )


def voc_root(root: Path, class_HW: np.ndarray, object_HW: np.ndarray) -> Path:
    picture(root / "JPEGImages/2007_000032.jpg")
    for name, labels_HW in (("SegmentationClass", class_HW), ("SegmentationObject", object_HW)):
        (root / name).mkdir(exist_ok=True)
        palette(labels_HW).save(root / name / "2007_000032.png")
    (root / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
    (root / "ImageSets/Segmentation/train.txt").write_text("2007_000032\n")
    return root


def test_voc_objects_have_the_class_of_their_pixels(tmp_path: Path) -> None:
    class_HW, object_HW = np.zeros((2, HEIGHT, WIDTH), np.uint8)
    for number, (x, category) in enumerate(((2, 1), (28, 1), (16, 15)), start=1):
        class_HW[1:12, x - 1 : x + 9] = object_HW[1:12, x - 1 : x + 9] = 255  # the border
        class_HW[2:11, x : x + 8], object_HW[2:11, x : x + 8] = category, number
    record = checked(open_weights("voc", "--root", str(voc_root(tmp_path, class_HW, object_HW))))
    said = {text: target for target in record.targets for text in texts(target)}
    assert record.id == "2007_000032"
    assert (decode(said["the left aeroplane"].mask) == (object_HW == 1)).all()
    assert (decode(said["the person"].mask) == (object_HW == 3)).all()
    assert int(decode(said["the aeroplanes"].mask).sum()) == 2 * 72
    with pytest.raises(UserError, match=r"--split.*did you mean 'train'"):
        open_weights("voc", "--root", str(tmp_path), "--split", "trian")
    (tmp_path / "SegmentationObject/2007_000032.png").unlink()
    assert "SegmentationObject" in error_of(open_weights("voc", "--root", str(tmp_path)))


# --- hostile values --------------------------------------------------------------------------------------------------

HOSTILE = (
    *(None, "", [], {}, 0, -1, 1e300, 10**400, True, "x" * 5000, "\ud800", [[]], [None], {"a": 1}, float("nan"), "\0"),
    *("../../../etc/passwd", "/dev/zero", [1, 2], [[1, 2]], "aGVsbG8=", 2**31, "car:", "::", ":wheel", ".", ".."),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of everything in a JSON value."""
    if path:
        yield path
    for key in value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0):
        yield from places(value[key], (*path, key))


def with_hostile_values(value: Any, random: Random) -> Any:
    """A copy in which one or two values are hostile or missing."""
    value = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 2))):
        *above, last = random.choice(list(places(value)))
        inner = value
        for key in above:
            inner = inner[key]
        if isinstance(inner, dict) and random.random() < 0.15:
            del inner[last]
        else:
            inner[last] = copy.deepcopy(random.choice(HOSTILE))
    return {"empty": None} if value == {} else value


@pytest.mark.exhaustive
@pytest.mark.parametrize("form", ["labelme", "via", "supervisely", "names"])
def test_hostile_values_are_named_and_nothing_else_happens(tmp_path: Path, form: str) -> None:
    picture(tmp_path / "images/a.jpg")
    figures = [bitmap(), figure("polygon", "car", [[2, 4], [12, 4], [12, 14]], [[[4, 6], [8, 6], [8, 10]]])]
    if form == "labelme":
        place, options = labelme_file(tmp_path / "images", SHAPES), ["--annotations", str(tmp_path / "images")]
    elif form == "via":
        via_source(tmp_path, VIA_REGIONS)
        place = tmp_path / "via.json"
        options = ["--annotations", str(place), "--images", str(tmp_path / "images"), "--label", "type"]
    elif form == "supervisely":
        supervisely_source(tmp_path / "root", figures)
        place, options = tmp_path / "root/ds0/ann/a.jpg.json", ["--root", str(tmp_path / "root")]
    else:
        names = json.dumps({"background": 0, "road": 1, "pole": 2})
        labelmap_source(tmp_path, Image.fromarray(LABELS_HW), names, name="names.json")
        place = tmp_path / "names.json"
        options = ["--masks", str(tmp_path / "masks"), "--images", str(tmp_path / "images"), "--names", str(place)]
    good, random, seen = json.loads(place.read_text()), Random(form), Counter[str]()
    for _ in range(400):
        place.write_text(json.dumps(with_hostile_values(good, random)))
        try:
            items: list[Any] = list(open_weights("labelmap" if form == "names" else form, *options))
        except UserError as error:
            items = [error]
        for item in items:
            seen[type(item).__name__] += 1
            if isinstance(item, ImageRecord):
                with contextlib.suppress(RecordError):
                    check_record(item, "here")
    assert set(seen) <= {"ImageRecord", "RecordError", "NothingLeftError", "UserError", "JsonError"}, seen
