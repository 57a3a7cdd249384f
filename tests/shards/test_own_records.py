"""Data that Python has in hand: records of arrays, run lengths and polygons, written and read again."""

import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import ROOT
from made_photos import SIZE, mask_of_box, turned_photo
from PIL import Image
from pycocotools import mask as coco

import mres
from mres.errors import UserError
from mres.records import decode_masks
from mres.shards.reader import ShardSet

PIXELS_HWC = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
MASK_HW = np.zeros((12, 20), bool)
MASK_HW[2:8, 4:10] = True


@pytest.mark.parametrize(
    "mask",
    [
        MASK_HW,
        MASK_HW.astype(np.uint8) * 255,
        MASK_HW.astype(np.int64),
        coco.encode(np.asfortranarray(MASK_HW, np.uint8)),
        {"size": [12, 20], "counts": coco.encode(np.asfortranarray(MASK_HW, np.uint8))["counts"].decode()},
        [4, 2, 10, 2, 10, 8, 4, 8],
        [[4, 2, 10, 2, 10, 8, 4, 8]],
        [np.array([4, 2, 10, 2, 10, 8, 4, 8], np.float32)],
    ],
    ids=["bool", "255", "int", "rle bytes", "rle text", "polygon", "polygons", "polygon array"],
)
def test_every_form_of_a_mask_is_the_same_mask(mask: Any) -> None:
    made = mres.record(PIXELS_HWC, {"the red car": mask}, id="a", category="car")
    (target,) = made.targets
    assert (decode_masks([target.mask])[0] == MASK_HW).all()
    assert (target.box, target.category, target.granularity) == ((4, 2, 6, 6), "car", "object")
    assert (made.width, made.height) == (20, 12)


def test_every_form_of_an_image_is_the_same_picture(tmp_path: Path) -> None:
    Image.fromarray(PIXELS_HWC).save(tmp_path / "photo.png")
    content = (tmp_path / "photo.png").read_bytes()
    for image in (
        PIXELS_HWC,
        tmp_path / "photo.png",
        str(tmp_path / "photo.png"),
        content,
        Image.fromarray(PIXELS_HWC),
    ):
        made = mres.record(image, {"the car": MASK_HW})
        with Image.open(io.BytesIO(made.image)) as picture:
            assert (np.array(picture) == PIXELS_HWC).all()
    assert mres.record(tmp_path / "photo.png", {"the car": MASK_HW}).id == "photo"


def test_the_example_of_the_docs_runs_and_is_read_again(tmp_path: Path) -> None:
    text = (ROOT / "docs/sources.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?mres\.write_shards.*?)```", text, re.DOTALL)
    assert len(example.strip().splitlines()) <= 15
    Image.fromarray(PIXELS_HWC).resize((640, 480)).save(tmp_path / "photo.jpg")
    result = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    (record,) = (ShardSet(tmp_path / "data/mine").read(i) for i in range(1))
    said = {e.text: t for t in record.targets for e in t.expressions}
    assert said["the red car"] is said["car on the left"]
    assert said["the wheel of the red car"].granularity == "part"
    assert said["the dog"].no_target
    assert said["the dog"].mask.is_empty
    assert record.split == "train"


def test_what_is_clipped_is_said() -> None:
    with pytest.warns(UserWarning, match="'the car'.*clipped"):
        mres.record(PIXELS_HWC, {"the car": [[4, 2, 30, 2, 30, 8, 4, 8]]})


def test_records_are_written_once_and_again_only_when_asked(tmp_path: Path) -> None:
    records = [mres.record(PIXELS_HWC, {"the car": MASK_HW}, id=f"im{i}", split="val") for i in range(3)]
    manifest = mres.write_shards(records, tmp_path / "set", images_per_shard=2)
    assert manifest.counts.images_by_split == {"val": 3}
    assert [ShardSet(tmp_path / "set").read(i) for i in range(3)] == records
    with pytest.raises(UserError, match=r"set.*overwrite=True"):
        mres.write_shards(records, tmp_path / "set")
    mres.write_shards(records[:1], tmp_path / "set", overwrite=True, max_side=np.int64(640))
    assert len(ShardSet(tmp_path / "set")) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"masks": {}}, ["masks", "at least one"]),
        ({"masks": {"the car": MASK_HW[:, :10]}}, ["'the car'", "(12, 10)", "(12, 20)"]),
        ({"masks": {"the car": MASK_HW * 0.5}}, ["'the car'", "float64"]),
        ({"masks": {"the car": MASK_HW * np.uint8(7)}}, ["'the car'", "7", "255"]),
        ({"masks": {"the car": "mask.png"}}, ["'the car'", "str"]),
        ({"masks": {"the car": [4, 2, 10, "x", 1, 1]}}, ["'the car'", "number"]),
        ({"masks": {"the car": {"size": [12, 21], "counts": "0"}}}, ["'the car'", "21"]),
        ({"masks": {"the car": [[30, 2, 40, 2, 40, 8]]}}, ["'the car'"]),
        ({"masks": {" ": MASK_HW}}, ["expressions"]),
        ({"masks": {3: MASK_HW}}, ["text"]),
        ({"parts": ["the cra"]}, ["parts", "'the cra'", "did you mean 'the car'"]),
        ({"category": {"the bus": "bus"}}, ["category", "'the bus'"]),
        ({"image": "nothing.jpg"}, ["nothing.jpg"]),
        ({"image": b"GIF"}, ["image"]),
        ({"image": 3}, ["int"]),
        ({"image": PIXELS_HWC.astype(float)}, ["float64"]),
        ({"split": ""}, ["split"]),
        ({"masks": {"the car": {"size": 12, "counts": "0"}}}, ["'the car'", "size"]),
        ({"parts": 3}, ["parts", "3"]),
        ({"category": None}, ["category", "None"]),
        ({"orientation": "storde"}, ["orientation", "did you mean 'stored'"]),
    ],
)
def test_what_cannot_be_a_record_is_named(arguments: dict[str, Any], words: list[str]) -> None:
    given = {"image": PIXELS_HWC, "masks": {"the car": MASK_HW}, **arguments}
    with pytest.raises(UserError) as caught:
        mres.record(given.pop("image"), given.pop("masks"), **given)
    for word in words:
        assert word in str(caught.value)


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    twice = [mres.record(PIXELS_HWC, {"the car": MASK_HW}, id="a")] * 2
    for records, options, word in (
        (twice, {}, "twice"),
        ([], {}, "no records"),
        ([{"id": 1}], {}, "mres.record"),
        (twice[:1], {"overwritte": True}, "did you mean 'overwrite'"),
        (twice[:1], {"format": "mds"}, "did you mean 'layout'"),
        (twice[:1], {"nothing": 1}, "allowed: .*layout"),
        (twice[:1], {"orientation": "stored"}, "mres.record"),
        (twice[:1], {"max_side": "640"}, "max side: '640'; expected int"),
        (twice[:1], {"workers": True}, "workers: True"),
        (twice[:1], {"overwrite": "no"}, "overwrite: 'no'"),
        (twice[:1], {"layout": "zip"}, "layout: 'zip'; allowed: tar, mds"),
        (twice[0], {}, "ImageRecord, expected a list"),
        (None, {}, "NoneType, expected a list"),
    ):
        with pytest.raises(UserError, match=word):
            mres.write_shards(records, tmp_path / "set", **options)
        assert not (tmp_path / "set").exists()


def test_what_was_done_to_the_records_is_printed_and_in_the_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deep = Image.fromarray(np.linspace(0, 65535, 240).reshape(12, 20).astype(np.uint16))
    deep.save(tmp_path / "deep.png")
    with pytest.warns(UserWarning, match="clipped"):
        clipped = mres.record(PIXELS_HWC, {"the car": [[4, 2, 30, 2, 30, 8, 4, 8]]}, id="clipped")
    records = [
        mres.record(tmp_path / "deep.png", {"the car": MASK_HW}, id="file"),
        mres.record(deep, {"the car": MASK_HW}, id="pillow"),
        mres.record(turned_photo(6, "JPEG"), {"the box": mask_of_box(orientation=6), "on the left": None}, id="turned"),
        clipped,
        mres.record(PIXELS_HWC, {"the car": MASK_HW}, id="plain"),
    ]
    notes = mres.write_shards(records, tmp_path / "set").source["notes"]
    printed = capsys.readouterr().err
    assert set(notes.values()) == {1}
    words = (
        "PNG images of the mode I;16",
        "PIL images of the mode I;16",
        "turned upright",
        "turned along",
        "a side",
        "clipped",
    )
    for word in words:
        (note,) = (note for note in notes if word in note)
        assert f"note: {note}: 1" in printed
    assert len(notes) == 6
    mres.write_shards(records[-1:], tmp_path / "plain")
    assert "note" not in capsys.readouterr().err


@pytest.mark.parametrize("size", [SIZE, (48, 48)])
def test_masks_of_every_form_are_turned_along_where_they_are_said_to_lie_as_stored(size: tuple[int, int]) -> None:
    content = turned_photo(6, "PNG", size)
    stored_HW, upright_HW = mask_of_box(size, 6), mask_of_box(size)
    rows, columns = np.nonzero(stored_HW)
    x, y, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    for mask in (stored_HW, [x, y, right, y, right, bottom, x, bottom]):
        made = mres.record(content, {"the box": mask}, orientation="stored")
        assert (decode_masks([made.targets[0].mask])[0] == upright_HW).all()
        assert (made.width, made.height) == size
    made = mres.record(content, {"the box": upright_HW}, orientation="upright")
    assert (decode_masks([made.targets[0].mask])[0] == upright_HW).all()
    if size == SIZE:
        with pytest.raises(UserError, match="the mask"):
            mres.record(content, {"the box": upright_HW}, orientation="stored")


def test_no_torch_is_imported(tmp_path: Path) -> None:
    code = "import sys, mres; mres.record; mres.write_shards; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
