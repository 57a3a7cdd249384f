"""CRIS's JSON with mask files: records, their masks, and what broken files are told."""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from made_cris import HEIGHT, WIDTH, entry, jpeg, pixels, png, rectangle, write_cris

from mres.errors import UserError
from mres.records import ImageRecord, RecordError
from mres.shards.writer import WriteOptions, write_shards
from mres.sources import registry
from mres.sources.coco_masks import EmptyMaskError
from mres.sources.coco_names import COCO_NAMES
from mres.sources.cris import cris
from mres.sources.mask_files import read_mask
from mres.sources.source import NothingLeftError

A, B = "COCO_train2014_000000000009.jpg", "COCO_train2014_000000000025.jpg"


def test_entries_of_an_image_become_one_record(tmp_path: Path) -> None:
    entries = [
        entry(7, A, "left dog", " the dog ", box=(1, 1, 5, 4)),
        entry(8, B, "all"),
        entry("9", A, "cup", cat=41, box=(6, 2, 11, 8)),
    ]
    files = write_cris(tmp_path, entries)
    parser = argparse.ArgumentParser()
    module = registry.SOURCES["cris"]
    module.add_arguments(parser)
    options = [f"--{name}={path}" for name, path in files.items()]
    source = module.open(parser.parse_args(options))
    first, second = source
    assert isinstance(first, ImageRecord)
    assert (first.id, first.width, first.height) == (Path(A).stem, WIDTH, HEIGHT)
    assert (first.split, first.source, first.image) == ("val", "refcoco (cris)", jpeg())
    assert [(t.id, t.category, t.granularity, t.parent) for t in first.targets] == [
        ("7", "dog", "object", None),
        ("9", "cup", "object", None),
    ]
    assert [[(e.text, e.kind) for e in t.expressions] for t in first.targets] == [
        [("left dog", ""), ("the dog", "")],
        [("cup", "")],
    ]
    assert first.targets[1].box == (6, 2, 5, 6)
    assert (pixels(first.targets[1].mask) == rectangle((6, 2, 11, 8))).all()
    assert isinstance(second, ImageRecord)
    assert second.id == Path(B).stem
    assert source.description["annotations"] == "refcoco/val.json"
    assert str(tmp_path) not in json.dumps(source.description)
    assert source.notes == {}
    write_shards(source, tmp_path / "set")
    published = "3811 with 10834 sentences or 5000 with any number of sentences"
    assert source.notes[f"refs kept of refcoco val (published: {published})"] == 3
    assert module.open(parser.parse_args([*options, "--split=mine"])).description["split"] == "mine"


def test_the_categories_are_cocos() -> None:
    assert len(set(COCO_NAMES)) == 80
    places = {0: "person", 10: "fire hydrant", 11: "stop sign", 24: "backpack", 60: "dining table", 79: "toothbrush"}
    assert {place: COCO_NAMES[place] for place in places} == places


def test_images_of_one_name_in_two_folders_stay_apart(tmp_path: Path) -> None:
    files = write_cris(tmp_path, [entry(1, "a/x.jpg", "one"), entry(2, "b/x.jpg", "two")], "other/val.json")
    (files["images"] / "b/x.jpg").write_bytes(jpeg(200))
    records = list(cris(**files))
    assert [record.id for record in records] == ["a/x", "b/x"]
    assert records[1].image == jpeg(200)


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    entries = [
        entry(1, A, "one", "  "),
        entry(2, A, "two"),
        entry(3, A),
        entry(4, B, "four"),
        entry(1, A, "one again"),
    ]
    files = write_cris(tmp_path, entries, "mine/train.json")
    (files["masks"] / "2.png").write_bytes(png(None))
    (files["masks"] / "4.png").write_bytes(png(None))
    source = cris(**files)
    assert len(source) == 2
    record = source[0]
    assert [(t.id, [e.text for e in t.expressions]) for t in record.targets] == [("1", ["one", "one again"])]
    with pytest.raises(NothingLeftError, match=f"{B}: none of its masks covers a pixel"):
        source[1]
    assert source.notes == {
        "blank sentences, left out": 1,
        "entries without expressions, left out": 1,
        "entries of a segment that had one already, merged": 1,
        "masks that cover no pixel, left out": 2,
        "images none of whose masks covers a pixel, left out": 1,
    }


def test_a_blank_sentence_keeps_the_places_of_the_others_and_the_ids_of_the_source_travel(tmp_path: Path) -> None:
    (record,) = cris(**write_cris(tmp_path, [entry(7, A, "one", "  ", "two")], "mine/train.json"))
    (target,) = record.targets
    assert (target.id, target.ref_id) == ("7", 7)
    assert [(e.text, e.sent_id, e.sent_index) for e in target.expressions] == [("one", 0, 0), ("two", 2, 2)]


def test_a_mask_without_a_pixel_stays_in_a_held_out_split(tmp_path: Path) -> None:
    files = write_cris(tmp_path, [entry(1, A, "one"), entry(2, A, "two")], "mine/testA.json")
    (files["masks"] / "2.png").write_bytes(png(None))
    source = cris(**files)
    (record,) = source
    assert [pixels(target.mask).any() for target in record.targets] == [True, False]
    assert record.targets[1].box == (0, 0, 0, 0)
    assert source.notes == {"masks that cover no pixel, kept as empty truth (held-out split)": 1}


@pytest.mark.parametrize(
    "bad",
    [
        7,
        entry(10**400, A, "one"),
        entry("n" * 5000, "other.jpg", "one"),
        entry(2, "i" * 5000 + ".jpg", "one"),
        entry(2, "\ud800.jpg", "one"),
        entry(2, A, "a \ud800"),
        {**entry(2, A, "one"), "bbox": [10**400, 1, 1, 1]},
        {**entry(2, A, "one"), "cat": 10**400},
        {**entry(2, A, "one"), "sentences_num": 10**400},
    ],
    ids=range(9),
)
def test_no_entry_ends_a_build_that_has_a_budget(bad: Any, tmp_path: Path) -> None:
    files = write_cris(tmp_path, [entry(1, A, "one"), entry(3, B, "three")], "mine/train.json")
    files["annotations"].write_text(json.dumps([entry(1, A, "one"), bad, entry(3, B, "three")]))
    manifest = write_shards(cris(**files), tmp_path / "out", WriteOptions(max_bad_fraction=0.5))
    assert (manifest.counts.images, manifest.counts.quarantined) == (2, 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cat": 80}, "field 'cat': found 80, expected 0 to 79"),
        ({"cat": "dog"}, "field 'cat': found 'dog'"),
        ({"cat": True}, "field 'cat': found True"),
        ({"img_name": "/etc/x.jpg"}, "'/etc/x.jpg' leaves the folder"),
        ({"img_name": "a/../../x.jpg"}, "leaves the folder"),
        ({"img_name": None}, "field 'img_name': found None"),
        ({"segment_id": "../7"}, r"field 'segment_id': found '\.\./7'"),
        ({"segment_id": 7.0}, "field 'segment_id': found 7.0"),
        ({"segment_id": 8}, "the segment id '8' belongs to '.*09.jpg' and, before, to '.*25.jpg'"),
        ({"sentences": "left dog"}, "field 'sentences': found str, expected a list"),
        ({"sentences": [{"text": "dog"}]}, "field 'sentences': found .*expected text of up to 2000 characters"),
        ({"sentences": ["x" * 2001], "sentences_num": 1}, "expected text of up to 2000 characters"),
        ({"sentences_num": 3}, "field 'sentences_num': found 3, but 1 sentences are listed"),
        ({"bbox": [1, 2, 3]}, r"field 'bbox': found \[1, 2, 3\]"),
    ],
)
def test_a_bad_entry_is_named_and_comes_first(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    entries = [entry(8, B, "all"), entry(7, A, "dog")]
    files = write_cris(tmp_path, entries)
    entries[1].update(fields)
    files["annotations"].write_text(json.dumps(entries))
    error, good = cris(**files)
    assert isinstance(good, ImageRecord)
    assert isinstance(error, RecordError)
    with pytest.raises(RecordError, match=r"val.json: entry 1: .*" + message):
        raise error


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (None, "the mask '.*/7.png' cannot be read: No such file"),
        (b"", r"the mask is empty \(0 bytes\)"),
        (b"GIF89a" + bytes(50), "the mask is a damaged or cut off GIF"),
        (png((1, 1, 5, 4))[:-30], "the mask cannot be decoded"),
        (png((1, 1, 5, 4), size=(HEIGHT, WIDTH)), "the mask has 8x12 pixels, its image 12x8"),
        (png((1, 1, 5, 4), brightness=1), "the mask's brightest value is 1, expected 0 and 255"),
        (png((1, 1, 5, 4), mode="I;16"), "the mask is of mode 'I;16'"),
        (png((8, 6, 12, 8)), r"covers x 8 to 12, y 6 to 8, outside of its 'bbox' \[1, 1, 5, 4\]"),
    ],
)
def test_a_bad_mask_is_named(mask: bytes | None, message: str, tmp_path: Path) -> None:
    files = write_cris(tmp_path, [entry(7, A, "dog"), entry(8, B, "all")])
    if mask is None:
        (files["masks"] / "7.png").unlink()
    else:
        (files["masks"] / "7.png").write_bytes(mask)
    error, good = cris(**files)
    assert isinstance(good, ImageRecord)
    with pytest.raises(RecordError, match=r"val.json: entry 0, segment '7': .*" + message):
        raise error


@pytest.mark.parametrize("image", [None, b"no image"])
def test_a_bad_image_is_named(image: bytes | None, tmp_path: Path) -> None:
    files = write_cris(tmp_path, [entry(7, A, "dog"), entry(8, B, "all")])
    (files["images"] / A).unlink() if image is None else (files["images"] / A).write_bytes(image)
    error, _ = cris(**files)
    with pytest.raises(RecordError, match=f"{A}: .*(No such file|is a text)"):
        raise error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no annotations at '.*val.json' \\(--annotations\\)"),
        ("{", "val.json': not JSON"),
        ('{"images": []}', "is not of CRIS's form: expected a list of objects"),
        ("[1]", "is not of CRIS's form"),
        ("[]", "is an empty list"),
        (json.dumps([entry(7, A), entry(8, A, " ")]), "none of its 2 entries has an expression"),
    ],
)
def test_what_is_not_of_the_form_is_refused(content: str | None, message: str, tmp_path: Path) -> None:
    files = write_cris(tmp_path, [entry(7, A, "dog")])
    files["annotations"].unlink()
    if content is not None:
        files["annotations"].write_text(content)
    with pytest.raises(UserError, match=message):
        cris(**files)


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("images", r"\(--images\) has none of the first 1 files that are needed, as 'COCO"),
        ("masks", r"\(--masks\) has none of the first 1 files that are needed, as '7.png'"),
    ],
)
def test_a_folder_of_something_else_is_refused(folder: str, message: str, tmp_path: Path) -> None:
    files = write_cris(tmp_path, [entry(7, A, "dog")])
    with pytest.raises(UserError, match=message):
        cris(**{**files, folder: tmp_path})
    with pytest.raises(UserError, match=f"no folder at '/nowhere' \\(--{folder}\\)"):
        cris(**{**files, folder: Path("/nowhere")})


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_every_8_bit_form_of_mask_is_read_alike(mode: str, tmp_path: Path) -> None:
    notes: Counter[str] = Counter()
    content = png((1, 1, 5, 4), mode=mode)
    (tmp_path / "m.png").write_bytes(content)
    expected = rectangle((1, 1, 5, 4))
    for picture in (content, tmp_path / "m.png"):
        assert (pixels(read_mask(picture, HEIGHT, WIDTH, "here", notes)) == expected).all()
    assert not notes


def test_other_values_are_cut_in_the_middle_and_counted() -> None:
    notes: Counter[str] = Counter()
    mask = read_mask(png((1, 1, 5, 4), brightness=128), HEIGHT, WIDTH, "here", notes)
    assert (pixels(mask) == rectangle((1, 1, 5, 4))).all()
    assert notes == {"masks with values other than 0 and 255, cut at 127": 1}
    with pytest.raises(EmptyMaskError, match="here: the mask covers no pixel"):
        read_mask(png(None), HEIGHT, WIDTH, "here", notes)


def test_a_mask_that_cannot_be_read_costs_its_segment_and_is_a_bad_record(tmp_path: Path) -> None:
    files = write_cris(tmp_path, [entry(1, A, "one"), entry(2, A, "two"), entry(3, B, "three")], "mine/train.json")
    (files["masks"] / "2.png").unlink()
    with pytest.raises(UserError, match=r"2\.png' cannot be read"):
        write_shards(cris(**files), tmp_path / "strict")
    counts = write_shards(cris(**files), tmp_path / "lenient", WriteOptions(max_bad_fraction=0.5, workers=1)).counts
    assert (counts.images, counts.targets["object"], counts.quarantined) == (2, 2, 1)
