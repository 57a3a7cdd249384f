"""InstructPart: masks as pictures under the names of image, object and part; instructions and names."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_coco import by_id, decode, only_record, open_weights, texts
from PIL import Image

from mres.errors import UserError
from mres.records import RecordError

TEXTS = [
    "Where should I hold the cup to drink?",
    "Which part do I grip to drink from it?",
    "Where is the handle of the cup?",
    "Where is the handle of the cup that can be held?",
    "handle of the cup",
    "handle of the cup that can be held",
]
HANDLE: dict[str, Any] = {
    "object": "coffee cup",
    "part": "handle",
    "affordance": "hold",
    "action": "hold",
    "instruction": TEXTS,
}


def write(folder: Path, parts: Any, image: str = "12.jpg", mask: str = "12-coffee_cup-handle.jpg") -> list[str]:
    """The genuine folder: data_train.json beside images/ and masks/; the mask is a JPEG and so has grey edges."""
    for name in ("images", "masks"):
        (folder / name).mkdir(exist_ok=True)
    Image.new("RGB", (48, 32), (9, 9, 9)).save(folder / "images" / image)
    mask_HW = np.zeros((32, 48), np.uint8)
    mask_HW[5:12, 10:21] = 255
    Image.fromarray(mask_HW).save(folder / "masks" / mask)
    (folder / "data_train.json").write_text(json.dumps([{"image_path": "12.jpg", "part_list": parts}]))
    return ["--annotations", str(folder / "data_train.json")]


def test_a_part_with_its_six_texts(tmp_path: Path) -> None:
    source = open_weights("instructpart", *write(tmp_path, [HANDLE]))
    record = only_record(source)
    assert (record.id, record.width, record.height, record.source) == ("12", 48, 32, "instructpart")
    (target,) = record.targets
    assert (target.granularity, target.category, target.parent) == ("part", "coffee cup:handle", None)
    assert [(e.text, e.kind) for e in target.expressions] == list(
        zip(TEXTS, ["instruction"] * 4 + ["category"] * 2, strict=True)
    )
    mask_HW = decode(target.mask)
    assert mask_HW[6:11, 11:20].all()
    assert abs(int(mask_HW.sum()) - 77) < 20
    assert sum(source.notes.values()) == 1  # not strictly 0 and 255


@pytest.mark.parametrize(("image", "mask"), [("12-coffee_cup-handle.jpg", "12-coffee_cup-handle.png"), ("12.jpg",) * 2])
def test_where_images_and_masks_are_looked_for(image: str, mask: str, tmp_path: Path) -> None:
    source = open_weights("instructpart", *write(tmp_path, [HANDLE], image, mask))
    if mask == "12.jpg":
        with pytest.raises(RecordError, match=r"12-coffee_cup-handle.jpg' cannot be read"):
            only_record(source)
    else:
        assert texts(only_record(source).targets[0])[0] == TEXTS[0]
        assert not source.notes


def test_a_part_listed_twice_has_all_texts(tmp_path: Path) -> None:
    again = {**HANDLE, "instruction": ["Grab it here.", TEXTS[0]]}
    record = only_record(open_weights("instructpart", *write(tmp_path, [HANDLE, again])))
    target = by_id(record)["coffee cup:handle"]
    assert texts(target) == [*TEXTS, "Grab it here."]
    assert target.expressions[-1].kind == "instruction"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], r"image '12.jpg': field 'part_list' is \[\], expected a list of at least one part"),
        ([{**HANDLE, "part": "../x"}], r"fields 'object' and 'part' are 'coffee cup' and '../x', expected two names"),
        ([{**HANDLE, "object": 3}], "fields 'object' and 'part' are 3 and 'handle'"),
        ([{**HANDLE, "instruction": "x"}], "handle: field 'instruction' is 'x', expected a list of texts"),
        ([{**HANDLE, "instruction": ["  "]}], "field 'instruction'"),
        (["x"], "fields 'object' and 'part' are None and None"),
    ],
)
def test_a_bad_part_is_named(parts: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=message):
        only_record(open_weights("instructpart", *write(tmp_path, parts)))


def test_an_image_without_a_mask_is_named(tmp_path: Path) -> None:
    options = write(tmp_path, [HANDLE])
    Image.new("L", (48, 32)).save(tmp_path / "masks/12-coffee_cup-handle.jpg")
    with pytest.raises(RecordError, match="none of its masks covers a pixel"):
        only_record(open_weights("instructpart", *options))
    (tmp_path / "images/12.jpg").write_bytes(b"no picture")
    with pytest.raises(RecordError, match="is a text \\('no picture'\\)"):
        only_record(open_weights("instructpart", *options))
    (tmp_path / "images/12.jpg").unlink()
    with pytest.raises(RecordError, match=r"image '12.jpg': '.*images/12.jpg' cannot be read: No such file"):
        only_record(open_weights("instructpart", *options))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("{}", "not InstructPart's: expected a list of {'image_path', 'part_list'}, found dict"),
        ("[]", "found list"),
        ('[{"image_path": "a.jpg"}]', r"\[0\] is not of the form"),
    ],
)
def test_what_is_not_instructpart_is_refused(content: str, message: str, tmp_path: Path) -> None:
    options = write(tmp_path, [HANDLE])
    (tmp_path / "data_train.json").write_text(content)
    with pytest.raises(UserError, match=message):
        open_weights("instructpart", *options)


def test_an_entry_that_cannot_be_used_costs_itself(tmp_path: Path) -> None:
    options = write(tmp_path, [HANDLE])
    path = tmp_path / "data_train.json"
    good = json.loads(path.read_text())
    path.write_text(json.dumps([{**good[0], "image_path": "set\\12.jpg"}, *good, 7]))
    twice, no_entry, record = open_weights("instructpart", *options)
    assert "[0] and [1] both have the image '12'" in str(twice)
    assert "[2] is not of the form" in str(no_entry)
    assert not isinstance(record, RecordError)
    assert record.id == "12"


@pytest.mark.parametrize(("split", "targets"), [("train", 1), ("test", 2)])
def test_a_black_mask_is_a_truth_where_it_is_evaluated(split: str, targets: int, tmp_path: Path) -> None:
    options = write(tmp_path, [HANDLE, {**HANDLE, "part": "rim"}])
    Image.new("L", (48, 32)).save(tmp_path / "masks/12-coffee_cup-rim.png")
    source = open_weights("instructpart", *options, "--split", split)
    assert len(only_record(source).targets) == targets
    assert any("masks that cover no pixel" in note for note in source.notes)


def test_missing_folders_are_named(tmp_path: Path) -> None:
    options = write(tmp_path, [HANDLE])
    with pytest.raises(UserError, match=r"no folder at '/nowhere' \(--masks\)"):
        open_weights("instructpart", *options, "--masks", "/nowhere")
    with pytest.raises(UserError, match=r"no annotations at .* \(--annotations\)"):
        open_weights("instructpart", "--annotations", str(tmp_path / "data_test.json"))
