"""Geometry there and back, masks as covered shares.

Shapes: H×W an original image, S side of the square, h side of the grid of logits.
"""

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mres.records import ImageRecord, Rle, decode_masks, encode_mask
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


def area_matrix(length: int, low: float, high: float, size: int) -> np.ndarray:
    """(size, length): how much of each of `size` cells over low … high each of `length` pixels covers."""
    edges = np.linspace(low, high, size + 1)
    pixel = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return np.clip(overlap, 0, None) * size / (high - low)


def covered_share(mask_HW: np.ndarray, geometry: transforms.Geometry, side: int, stride: int) -> np.ndarray:
    """Exact area averages, in another way: over the pixels of the square first, then over the cells."""
    (x0, y0, x1, y1), (left, top, right, bottom) = geometry.box, geometry.rect
    square_SS = np.zeros((side, side))
    rows = area_matrix(mask_HW.shape[0], y0, y1, bottom - top)
    columns = area_matrix(mask_HW.shape[1], x0, x1, right - left)
    square_SS[top:bottom, left:right] = rows @ mask_HW @ columns.T
    square_SS = square_SS[:, ::-1] if geometry.flipped else square_SS
    return square_SS.reshape(side // stride, stride, -1, stride).mean(axis=(1, 3))


@given(SIDES, SIDES, st.sampled_from([48, 96]), st.sampled_from(["letterbox", "stretch"]), st.integers(0, 9))
def test_a_mask_survives_the_way_to_the_square_and_back(w: int, h: int, side: int, resize: str, seed: int) -> None:
    geometry = transforms.fit(w, h, side, resize)
    if resize == "letterbox" and min(w, h) * side / max(w, h) < 12:
        return  # so narrow in the square that a tenth of it is no blob
    mask_HW = ellipse(h, w, seed)
    (map_SS,) = transforms.square_masks([encode_mask(mask_HW)], geometry, side, 1)
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
    (map_SS,) = transforms.square_masks([encode_mask(mask_HW)], geometry, 96, 1)
    assert iou(geometry.to_original(map_SS.astype(np.float32)) > 127, mask_HW) > 0.95
    assert transforms.fit(37, 91, 96, "stretch").rect == (0, 0, 96, 96)


@given(st.integers(1, 40), st.integers(0, 5), st.booleans())
def test_without_a_resize_it_is_exact(short: int, seed: int, tall: bool) -> None:
    side = 40
    width, height = (short, side) if tall else (side, short)
    mask_HW = np.random.default_rng(seed).random((height, width)) < 0.5
    geometry = transforms.fit(width, height, side, "letterbox")
    (map_SS,) = transforms.square_masks([encode_mask(mask_HW)], geometry, side, 1)
    assert ((geometry.to_original(map_SS) > 127) == mask_HW).all()
    left, top, right, bottom = geometry.rect
    outside_SS = np.ones((side, side), bool)
    outside_SS[top:bottom, left:right] = False
    assert not map_SS[outside_SS].any()


# Rounded to whole 255ths.
ROUNDING = 0.5 / 255 + 1e-9


@pytest.mark.parametrize(("size", "side", "stride"), [((128, 128), 96, 2), ((91, 37), 96, 2), ((640, 427), 448, 4),
                                                      ((200, 300), 448, 7), ((192, 144), 96, 4)])  # fmt: skip
def test_masks_are_the_covered_share_of_each_cell(size: tuple[int, int], side: int, stride: int) -> None:
    width, height = size
    geometry = transforms.fit(width, height, side, "letterbox")
    masks_KHW = [ellipse(height, width, seed) for seed in range(3)]
    masks_Khh = transforms.square_masks([encode_mask(m) for m in masks_KHW], geometry, side, stride)
    assert masks_Khh.dtype == np.uint8
    for mask_HW, mask_hh in zip(masks_KHW, masks_Khh, strict=True):
        expected_hh = covered_share(mask_HW.astype(float), geometry, side, stride)
        assert np.abs(mask_hh / 255 - expected_hh).max() <= ROUNDING


@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
def test_masks_are_the_covered_share_under_augmentation_too(resize: Literal["letterbox", "stretch"]) -> None:
    config = DataConfig(resize=resize, augment=AugmentConfig(flip=0.5, zoom=(0.5, 3.0), shift=0.4))
    mask_HW = np.random.default_rng(0).random((48, 61)) < 0.5
    record = ImageRecord("im7", b"", 61, 48, "train", "made", ())
    for epoch in range(40):
        geometry = transforms.augmented(record, 96, config, rng(0, epoch))
        (mask_hh,) = transforms.square_masks([encode_mask(mask_HW)], geometry, 96, 4)
        expected_hh = covered_share(mask_HW.astype(float), geometry, 96, 4)
        assert np.abs(mask_hh / 255 - expected_hh).max() <= ROUNDING


def test_expressions_of_one_target_share_its_mask() -> None:
    masks = [encode_mask(ellipse(30, 40, seed)) for seed in (0, 1, 0, 2, 1)]
    geometry = transforms.fit(40, 30, 64, "letterbox")
    masks_Khh = transforms.square_masks(masks, geometry, 64, 4)
    alone = [transforms.square_masks([mask], geometry, 64, 4)[0] for mask in masks]
    assert (masks_Khh == np.stack(alone)).all()


def test_damaged_run_lengths_are_refused_before_they_are_used() -> None:
    good = encode_mask(ellipse(30, 40, 0))
    for counts in (good.counts[:-1], good.counts + b"1", b"~"):
        damaged = Rle(30, 40, counts)
        with pytest.raises(ValueError, match=r"runs that cover|inside a number|alphabet"):
            transforms.square_masks([good, damaged], transforms.fit(40, 30, 64, "letterbox"), 64, 4)
        with pytest.raises(ValueError, match=r"runs that cover|inside a number|alphabet"):
            decode_masks([good, damaged])


def test_masks_without_a_resize_are_exact_means() -> None:
    mask_HW = np.random.default_rng(0).random((96, 96)) < 0.4
    geometry = transforms.fit(96, 96, 96, "letterbox")
    (mask_hh,) = transforms.square_masks([encode_mask(mask_HW)], geometry, 96, 4)
    expected_hh = mask_HW.reshape(24, 4, 24, 4).mean(axis=(1, 3))
    assert np.abs(mask_hh / 255 - expected_hh).max() <= ROUNDING


def test_a_flip_mirrors_masks_and_maps() -> None:
    for width, height in ((40, 30), (30, 40), (64, 64), (37, 91)):
        plain = transforms.fit(width, height, 64, "letterbox")
        flipped = transforms.Geometry(plain.width, plain.height, plain.box, plain.rect, flipped=True)
        rle = encode_mask(ellipse(height, width, 1))
        masks = [transforms.square_masks([rle], g, 64, 2)[0] for g in (plain, flipped)]
        assert (masks[1] == masks[0][:, ::-1]).all()
        map_SS = np.random.default_rng(0).random((64, 64), dtype=np.float32)
        assert (flipped.to_original(map_SS[:, ::-1]) == plain.to_original(map_SS)).all()


def test_augmentation_switched_off_is_the_plain_geometry() -> None:
    config = DataConfig(augment=AugmentConfig(flip=0))
    record = ImageRecord("im7", b"", 50, 30, "train", "made", ())
    assert transforms.augmented(record, 64, config, rng(0)) == transforms.fit(50, 30, 64, "letterbox")
