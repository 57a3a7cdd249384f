"""Turned photographs: built, trained on and predicted upright, their masks on the object, whichever way they were drawn."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_cris import entry, write_pictures
from made_photos import (
    BOX,
    SIZE,
    STORED,
    encoded,
    mask_of_box,
    photo,
    photo_source,
    predicted_pixels,
    record_mask,
    record_pixels,
    turned_photo,
)
from PIL import Image

import mres
from mres.pixels.picture import read_header
from mres.records import ImageRecord, RecordError
from mres.shards.info import describe
from mres.shards.leaks import image_hash
from mres.shards.reader import ShardSet
from mres.shards.writer import WriteOptions, write_shards
from mres.sources.cris import cris

TURNED = tuple(orientation for orientation in STORED if orientation != 1)


def assert_upright(record: ImageRecord, content: bytes, size: tuple[int, int] = SIZE) -> None:
    """The shard's pixels are prediction's and the drawn ones, the mask is the object, the bytes say nothing of a turn."""
    drawn = np.asarray(photo(size)).astype(int)
    pixels = record_pixels(record)
    assert pixels.shape == (*size[::-1], 3)
    assert np.abs(pixels - predicted_pixels(content)).mean() < 2
    inner = np.abs(pixels - drawn).max(axis=2)
    assert np.median(inner) <= 3
    assert (inner > 60).mean() < 0.02  # JPEG's edges
    assert (record_mask(record) == mask_of_box(size)).all()
    assert record.targets[0].box == (BOX[0], BOX[1], BOX[2] - BOX[0], BOX[3] - BOX[1])
    header = read_header(record.image)
    assert header.is_plain
    assert header.size == (record.width, record.height) == size


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", STORED)
def test_masks_lie_on_the_object_upright_or_as_stored(orientation: int, suffix: str, tmp_path: Path) -> None:
    content = turned_photo(orientation, suffix)
    source = photo_source(tmp_path / "upright", content, mask_of_box())
    assert_upright(source.make(0), content)
    tells = orientation in (5, 6, 7, 8)
    stored = photo_source(tmp_path / "stored", content, mask_of_box(orientation=orientation))
    stored = stored if tells or orientation == 1 else replace(stored, frame="stored")
    assert_upright(stored.make(0), content)
    assumed = [note for note in source.notes if "assumed" in note]
    assert bool(assumed) == (not tells and orientation != 1)
    assert any("turned along" in note for note in stored.notes) == (orientation != 1)


@pytest.mark.parametrize("orientation", TURNED)
def test_of_square_photographs_an_option_says_how_they_were_annotated(orientation: int, tmp_path: Path) -> None:
    square = (48, 48)
    content = turned_photo(orientation, "JPEG", square)
    upright = photo_source(tmp_path, content, mask_of_box(square))
    assert_upright(upright.make(0), content, square)
    stored = photo_source(tmp_path, content, mask_of_box(square, orientation))
    assert_upright(replace(stored, frame="stored").make(0), content, square)


def test_a_plain_image_keeps_its_bytes(tmp_path: Path) -> None:
    for content in (encoded(photo(), "JPEG"), encoded(photo().convert("L"), "PNG"), turned_photo(1, "JPEG")):
        source = photo_source(tmp_path, content, mask_of_box())
        assert source.make(0).image == content
        assert source.notes == {}


def test_a_turned_jpeg_keeps_its_quality_and_size(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 12, (480, 640, 3)) + np.linspace(40, 200, 640)[None, :, None]
    image = Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))
    exif = Image.Exif()
    exif[0x112] = 6
    for sampling in (0, 1, 2):
        content = encoded(image, "JPEG", quality=85, subsampling=sampling, exif=exif)
        record = photo_source(tmp_path, content, np.ones((640, 480), bool)).make(0)
        difference = np.abs(record_pixels(record) - predicted_pixels(content))
        assert difference.mean() < 1.5
        assert 0.8 < len(record.image) / len(content) < 1.3


def test_a_size_that_is_neither_is_an_error_that_names_the_orientation(tmp_path: Path) -> None:
    source = photo_source(tmp_path, turned_photo(6, "JPEG"), np.ones((50, 50), bool))
    with pytest.raises(RecordError, match=r"stored 48x64, upright 64x48 pixels \(EXIF orientation 6\).*says 50x50"):
        source.make(0)
    source = photo_source(tmp_path, turned_photo(6, "JPEG"), mask_of_box())
    with pytest.raises(RecordError, match=r"says 64x48 \(--orientation stored\)"):
        replace(source, frame="stored").make(0)


def test_what_was_said_of_places_does_not_outlive_the_turn(tmp_path: Path) -> None:
    """Whoever said it, and where its language is not known; what was said of nothing but the object stays."""
    gone = [
        *("the red car on the left", "car at the bottom", "topmost box", "the box below the lamp", "2nd from the end"),
        *(
            "das linke Auto",
            "la voiture à gauche",
            "左边的车",
            "zorbo fenkl",
            "the upper-right box",
            "box, clockwise next",
        ),
    ]
    kept = ["the red box", "the brightly lit box with the blue roof", "the box that reads 'stop'"]
    texts = [
        {"text": "the outermost box", "kind": "position"},
        {"text": "the left box", "kind": "category"},
        {"text": "zorb", "kind": "category"},
        *({"text": text} for text in gone + kept),
    ]
    source = photo_source(tmp_path, turned_photo(7, "JPEG"), mask_of_box(orientation=7), expressions=texts)
    assert [e.text for e in source.make(0).targets[0].expressions] == ["zorb", *kept]
    (note,) = [note for note in source.notes if note.startswith("expressions")]
    assert "turned" in note
    assert source.notes[note] == len(gone) + 2
    upright = photo_source(tmp_path / "upright", turned_photo(7, "JPEG"), mask_of_box(), expressions=texts)
    assert len(upright.make(0).targets[0].expressions) == len(texts)


@pytest.mark.parametrize(
    ("orientation", "mask_orientation"),
    [(orientation, drawn) for orientation in TURNED for drawn in ("upright", "stored", "tagged")][3 * 3 :]
    + [(orientation, drawn) for orientation in (2, 3, 4) for drawn in ("upright", "tagged")],  # sizes do not tell
)
def test_masks_in_files_of_their_own_fit_both_ways(orientation: int, mask_orientation: str, tmp_path: Path) -> None:
    """Sizes come from the images here: those of the masks decide, and a mask's own tag turns it like any picture."""
    as_drawn = mask_of_box(orientation=1 if mask_orientation == "upright" else orientation)
    exif = Image.Exif()
    exif[0x112] = orientation if mask_orientation == "tagged" else 1
    value = entry(7, "a.jpg", "the red box", bbox=None)
    write_pictures(tmp_path / "images", tmp_path / "masks", [entry(7, "a.jpg", "the red box")])
    content = turned_photo(orientation, "JPEG")
    (tmp_path / "images/a.jpg").write_bytes(content)
    (tmp_path / "masks/7.png").write_bytes(encoded(Image.fromarray(as_drawn), "PNG", exif=exif))
    (tmp_path / "val.json").write_text(json.dumps([value]))
    source = cris(tmp_path / "val.json", tmp_path / "masks", tmp_path / "images")
    assert_upright(source.make(0), content)


def test_a_set_says_what_its_pixels_are(tmp_path: Path) -> None:
    source = photo_source(tmp_path, turned_photo(6, "JPEG"), mask_of_box())
    manifest = write_shards(source, tmp_path / "set", WriteOptions())
    assert manifest.is_upright
    said = describe(str(tmp_path / "set"))
    assert said["options"]["pixels"] == "upright"
    assert said["source"]["notes"] == {"images turned upright, as their EXIF orientation says": 1}
    assert_upright(ShardSet(tmp_path / "set").read(0), turned_photo(6, "JPEG"))


def test_the_leak_check_sees_through_a_tag() -> None:
    textured = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(textured).resize((640, 480), Image.Resampling.BICUBIC)
    plain = image_hash(encoded(image, "JPEG"))
    for orientation in TURNED:
        exif, turn = Image.Exif(), STORED[orientation]
        exif[0x112] = orientation
        assert turn is not None
        other = image_hash(encoded(image.transpose(turn), "JPEG", exif=exif))
        assert (plain ^ other).bit_count() <= 4


@pytest.mark.parametrize("as_pillow", [False, True])
def test_records_made_in_python_are_upright_whichever_way_their_masks_lie(as_pillow: bool) -> None:
    content = turned_photo(6, "PNG")
    image = Image.open(io.BytesIO(content)) if as_pillow else content
    for mask_HW in (mask_of_box(), mask_of_box(orientation=6)):
        assert_upright(mres.record(image, {"the red box": mask_HW}), content)
