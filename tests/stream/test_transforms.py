"""Geometry there and back, flips that stay true, masks as covered shares, images that cannot be read.

Shapes: H×W an original image, S side of the square, h side of the grid of logits.
"""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mres.records import ImageRecord, RecordError
from mres.stream import transforms
from mres.stream.config import AugmentConfig, DataConfig
from mres.stream.order import rng

SIDES = st.integers(20, 160)


def ellipse(height: int, width: int, seed: int) -> np.ndarray:
    """A blob of about a tenth of the image, somewhere inside: mask_HW, bool."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    cy, cx = random.uniform(0.35, 0.65) * height, random.uniform(0.35, 0.65) * width
    ry, rx = random.uniform(0.2, 0.3) * height, random.uniform(0.2, 0.3) * width
    return ((y + 0.5 - cy) / ry) ** 2 + ((x + 0.5 - cx) / rx) ** 2 < 1


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def area_matrix(length: int, size: int) -> np.ndarray:
    """(size, length): how much of each cell of `size` cells each of `length` pixels covers."""
    edges = np.arange(size + 1) * length / size
    low, high = np.arange(length), np.arange(length) + 1
    overlap = np.minimum(edges[1:, None], high) - np.maximum(edges[:-1, None], low)
    return np.clip(overlap, 0, None) * size / length


def covered_share(mask_HW: np.ndarray, geometry: transforms.Geometry, side: int, stride: int) -> np.ndarray:
    """What `square_masks` approximates, by exact area averaging."""
    left, top, right, bottom = geometry.rect
    square_SS = np.zeros((side, side))
    rows, columns = area_matrix(mask_HW.shape[0], bottom - top), area_matrix(mask_HW.shape[1], right - left)
    square_SS[top:bottom, left:right] = rows @ mask_HW @ columns.T
    return square_SS.reshape(side // stride, stride, -1, stride).mean(axis=(1, 3))


@given(SIDES, SIDES, st.sampled_from([48, 96]), st.sampled_from(["letterbox", "stretch"]), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_a_mask_survives_the_way_to_the_square_and_back(w: int, h: int, side: int, resize: str, seed: int) -> None:
    geometry = transforms.fit(w, h, side, resize)
    if resize == "letterbox" and min(w, h) * side / max(w, h) < 12:
        return  # so narrow in the square that a tenth of it is no blob
    mask_HW = ellipse(h, w, seed)
    (map_SS,) = transforms.square_masks([transforms.encode_mask(mask_HW)], geometry, side, 1)
    assert map_SS.shape == (side, side)
    back_HW = geometry.to_original(map_SS.astype(np.float32)) > 127
    assert back_HW.shape == (h, w)
    assert iou(back_HW, mask_HW) > 0.9 or mask_HW.sum() < 100


def test_odd_sizes_letterboxed() -> None:
    geometry = transforms.fit(37, 91, 96, "letterbox")
    left, top, right, bottom = geometry.rect
    assert (top, bottom) == (0, 96)
    assert right - left == 39, "the aspect is kept"
    assert abs(left - (96 - right)) <= 1, "and it stands in the middle"
    mask_HW = ellipse(91, 37, 0)
    (map_SS,) = transforms.square_masks([transforms.encode_mask(mask_HW)], geometry, 96, 1)
    assert iou(geometry.to_original(map_SS.astype(np.float32)) > 127, mask_HW) > 0.95
    assert transforms.fit(37, 91, 96, "stretch").rect == (0, 0, 96, 96)


@given(st.integers(1, 40), st.integers(0, 5), st.booleans())
def test_without_a_resize_it_is_exact(short: int, seed: int, tall: bool) -> None:
    side = 40
    width, height = (short, side) if tall else (side, short)
    mask_HW = np.random.default_rng(seed).random((height, width)) < 0.5
    geometry = transforms.fit(width, height, side, "letterbox")
    (map_SS,) = transforms.square_masks([transforms.encode_mask(mask_HW)], geometry, side, 1)
    assert ((geometry.to_original(map_SS) > 127) == mask_HW).all()
    left, top, right, bottom = geometry.rect
    outside_SS = np.ones((side, side), bool)
    outside_SS[top:bottom, left:right] = False
    assert not map_SS[outside_SS].any()


@pytest.mark.parametrize(("size", "side", "stride"), [((128, 128), 96, 2), ((91, 37), 96, 2), ((640, 427), 448, 4),
                                                      ((200, 300), 448, 7), ((192, 144), 96, 4)])  # fmt: skip
def test_masks_are_the_covered_share_of_each_cell(size: tuple[int, int], side: int, stride: int) -> None:
    width, height = size
    geometry = transforms.fit(width, height, side, "letterbox")
    masks_KHW = [ellipse(height, width, seed) for seed in range(3)]
    masks_Khh = transforms.square_masks([transforms.encode_mask(m) for m in masks_KHW], geometry, side, stride)
    assert masks_Khh.dtype == np.uint8
    for mask_HW, mask_hh in zip(masks_KHW, masks_Khh, strict=True):
        expected_hh = covered_share(mask_HW.astype(float), geometry, side, stride)
        difference_hh = np.abs(mask_hh / 255 - expected_hh)
        # Where it resizes, Pillow's filter is a triangle, a little wider than the area.
        assert difference_hh.max() < 0.12
        assert difference_hh.mean() < 0.004
        assert mask_hh.mean() / 255 == pytest.approx(expected_hh.mean(), rel=0.02)


def test_masks_without_a_resize_are_exact_means() -> None:
    mask_HW = np.random.default_rng(0).random((96, 96)) < 0.4
    geometry = transforms.fit(96, 96, 96, "letterbox")
    (mask_hh,) = transforms.square_masks([transforms.encode_mask(mask_HW)], geometry, 96, 4)
    expected_hh = mask_HW.reshape(24, 4, 24, 4).mean(axis=(1, 3))
    assert np.abs(mask_hh / 255 - expected_hh).max() <= 0.5 / 255 + 1e-9


def record_of(drawn: Image.Image, suffix: str = "PNG", **changes) -> ImageRecord:
    with io.BytesIO() as buffer:
        drawn.save(buffer, suffix)
        content = buffer.getvalue()
    fields = {"id": "im7", "image": content, "width": drawn.width, "height": drawn.height, "split": "train"}
    return ImageRecord(**{**fields, "source": "made", "targets": (), **changes})


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (64, 64), (37, 91)])
def test_a_flip_mirrors_image_and_masks_alike(size: tuple[int, int]) -> None:
    width, height = size
    plain = transforms.fit(width, height, 64, "letterbox")
    flipped = transforms.Geometry(plain.width, plain.height, plain.box, plain.rect, flipped=True)
    record, rle = record_of(noise(width, height)), transforms.encode_mask(ellipse(height, width, 1))
    images = [transforms.square_image(transforms.open_image(record, "w"), g, 64, "w") for g in (plain, flipped)]
    assert (np.asarray(images[1]) == np.asarray(images[0])[:, ::-1]).all()
    masks = [transforms.square_masks([rle], g, 64, 2)[0] for g in (plain, flipped)]
    assert (masks[1] == masks[0][:, ::-1]).all()
    map_SS = np.random.default_rng(0).random((64, 64), dtype=np.float32)
    assert (flipped.to_original(map_SS[:, ::-1]) == plain.to_original(map_SS)).all()


@pytest.mark.parametrize(
    ("text", "swapped"),
    [
        ("the left wheel of the right car", "the right wheel of the left car"),
        ("Leftmost person", "Rightmost person"),
        ("the left-hand door", "the right-hand door"),
        ("RIGHT HAND SIDE", "LEFT HAND SIDE"),
        ("on the left", "on the right"),
        ("left, then right.", "right, then left."),
        ("back_left_door", "back_right_door"),
        ("leftward arrow, rightwards", "rightward arrow, leftwards"),
        ("the righthand one", "the lefthand one"),
    ],
)
def test_flips_swap_side_words(text: str, swapped: str) -> None:
    assert transforms.swap_side_words(text) == swapped
    assert transforms.swap_side_words(swapped) == text
    assert transforms.has_side_word(text)


@pytest.mark.parametrize(
    "text", ["the bright car", "upright bottle", "leftover pizza", "a copyright sign", "cleft", "top"]
)
def test_flips_leave_other_words_alone(text: str) -> None:
    assert transforms.swap_side_words(text) == text
    assert not transforms.has_side_word(text)


@given(st.text(st.sampled_from("left rightLEFTmostbr-_,."), max_size=30))
def test_swapping_twice_is_nothing(text: str) -> None:
    assert transforms.swap_side_words(transforms.swap_side_words(text)) == text


def test_image_and_mask_stay_aligned_under_augmentation() -> None:
    """A white ellipse on black: the image itself is its mask."""
    config = DataConfig(augment=AugmentConfig(flip=0.5, zoom=(0.5, 2.0), shift=0.3))
    mask_HW = ellipse(60, 90, 3)
    record = record_of(Image.fromarray(np.repeat(mask_HW[..., None] * np.uint8(255), 3, axis=2)))
    seen = set()
    for epoch in range(60):
        geometry = transforms.augmented(record, 64, config, rng(0, epoch, "im7", "augment"))
        image = transforms.square_image(transforms.open_image(record, "w"), geometry, 64, "w")
        (mask_SS,) = transforms.square_masks([transforms.encode_mask(mask_HW)], geometry, 64, 1)
        left, top, right, bottom = geometry.rect
        inside = (slice(top, bottom), slice(left, right))
        if geometry.flipped:
            inside = (slice(top, bottom), slice(64 - right, 64 - left))
        grey_SS = np.asarray(image.convert("L"))[inside]
        assert np.abs(grey_SS.astype(float) - mask_SS[inside]).mean() < 12
        assert 0 <= left < right <= 64
        assert 0 <= top < bottom <= 64
        seen.add(geometry)
    assert len(seen) == 60
    assert {g.flipped for g in seen} == {True, False}
    assert len({g.rect for g in seen}) > 20


def test_augmentation_switched_off_is_the_plain_geometry() -> None:
    config = DataConfig(augment=AugmentConfig(flip=0))
    record = record_of(noise(50, 30))
    geometry = transforms.augmented(record, 64, config, rng(0))
    assert geometry == transforms.fit(50, 30, 64, "letterbox")
    image = noise(8, 8)
    assert transforms.jitter(image, config.augment, rng(0)) is image


def test_a_large_jpeg_is_decoded_small_and_looks_the_same() -> None:
    smooth = noise(8, 6).resize((1200, 900), Image.Resampling.BICUBIC)
    geometry = transforms.fit(1200, 900, 96, "letterbox")
    jpeg = transforms.square_image(transforms.open_image(record_of(smooth, "JPEG"), "w"), geometry, 96, "w")
    png = transforms.square_image(transforms.open_image(record_of(smooth), "w"), geometry, 96, "w")
    difference = np.abs(np.asarray(jpeg).astype(float) - np.asarray(png))
    assert difference.mean() < 3


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_every_colour_mode_becomes_rgb(mode: str) -> None:
    record = record_of(noise(20, 20).convert(mode), "JPEG" if mode == "CMYK" else "PNG")
    image = transforms.square_image(
        transforms.open_image(record, "w"), transforms.fit(20, 20, 32, "letterbox"), 32, "w"
    )
    assert (image.mode, image.size) == ("RGB", (32, 32))


def decode(record: ImageRecord) -> None:
    geometry = transforms.fit(record.width, record.height, 32, "letterbox")
    transforms.square_image(transforms.open_image(record, "set/shard-000000.tar: 00000003"), geometry, 32, "here")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image": b"no image"}, "set/shard-000000.tar: 00000003: record 'im7': the image cannot be read"),
        ({"image": b""}, "record 'im7': the image cannot be read"),
        ({"width": 41}, "record 'im7': the image is 40 x 30 pixels, the record says 41 x 30"),
    ],
)
def test_an_image_that_does_not_fit_its_record_is_named(changes: dict, words: str) -> None:
    with pytest.raises(RecordError, match=words):
        decode(record_of(noise(40, 30), **changes))


@pytest.mark.parametrize("suffix", ["JPEG", "PNG"])
def test_damaged_images_are_record_errors_and_nothing_else(suffix: str) -> None:
    record = record_of(noise(40, 30), suffix)
    with pytest.raises(RecordError, match="here: the image cannot be decoded"):
        decode(record_of(noise(40, 30), suffix, image=record.image[: len(record.image) // 2]))
    random, refused = np.random.default_rng(0), 0
    for _ in range(300):
        content = bytearray(record.image)
        for _ in range(random.integers(1, 8)):
            content[random.integers(0, len(content))] = random.integers(0, 256)
        try:
            decode(record_of(noise(40, 30), suffix, image=bytes(content)))
        except RecordError:
            refused += 1
    assert refused > 20
