"""COCO's run lengths: read as pycocotools writes them, damage is a ValueError, shares of a grid are exact.

Shapes: K masks of H×W pixels, h×w a grid.
"""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from mres.rle import coverage, decode_all, decode_counts, decode_masks, num_pixels

sides = st.integers(1, 40)
masks = st.tuples(sides, sides).flatmap(lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 1)))
several = st.tuples(st.integers(1, 5), sides, sides).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 1))
)


def encoded(mask_HW: np.ndarray) -> bytes:
    counts: bytes = coco.encode(np.asfortranarray(mask_HW))["counts"]
    return counts


def runs_of(mask_HW: np.ndarray) -> list[int]:
    """Run lengths counted one by one, column by column; the first run is of zeros."""
    runs, value = [0], 0
    for pixel in mask_HW.T.reshape(-1):
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


def plain_decode(counts: bytes) -> list[int]:
    """The format character by character."""
    runs: list[int] = []
    value, shift = 0, 0
    for character in counts:
        group = character - 48
        if not 0 <= group < 64 or shift >= 35:
            raise ValueError
        value |= (group & 0x1F) << shift
        shift += 5
        if group & 0x20:
            continue
        if group & 0x10:
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        if value < 0:
            raise ValueError
        runs.append(value)
        value, shift = 0, 0
    if shift:
        raise ValueError
    return runs


@given(masks)
def test_run_lengths_are_those_of_pycocotools(mask_HW: np.ndarray) -> None:
    assert decode_counts(encoded(mask_HW)).tolist() == runs_of(mask_HW)


@given(st.lists(st.integers(0, 400_000_000), min_size=1, max_size=30))
def test_long_runs_are_read_as_pycocotools_writes_them(runs: list[int]) -> None:
    """Up to those of the largest image that a record may have, 20 000 × 20 000 pixels."""
    written = coco.frPyObjects({"size": [1, 1], "counts": runs}, 1, 1)
    assert decode_counts(written["counts"]).tolist() == runs


rle_bytes = st.binary(max_size=40) | st.lists(st.integers(48, 111), max_size=40).map(bytes)
likely_bytes = st.lists(st.sampled_from(b"0123456789:PQRSTUVWXYZoL"), max_size=40).map(bytes)


@given(rle_bytes | likely_bytes)
@example(b"")
@example(b"PPPPPP0")
@example(b"PPPPPPP0")
@example(b"ooooooo?")
def test_any_bytes_are_read_by_the_rule_or_a_value_error(counts: bytes) -> None:
    try:
        expected = plain_decode(counts)
    except ValueError:
        with pytest.raises(ValueError, match=r"alphabet|inside a number|negative length|more than 7"):
            decode_counts(counts)
    else:
        assert decode_counts(counts).tolist() == expected


@given(st.lists(likely_bytes, max_size=6))
def test_many_masks_at_once_are_read_like_each_alone(counts: list[bytes]) -> None:
    try:
        alone = [decode_counts(each).tolist() for each in counts]
    except ValueError:
        with pytest.raises(ValueError, match=r"alphabet|inside a number|negative length|more than 7"):
            decode_all(counts)
        return
    runs, first = decode_all(counts)
    assert [runs[a:b].tolist() for a, b in pairwise(first)] == alone
    assert num_pixels(counts).tolist() == [sum(each) for each in alone]


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        (b"1 1", r"character ' ' is outside"),
        (b"1\xff", r"character 'ÿ' is outside"),
        (b"1P", "ends inside a number"),
        (b"O", "a run of negative length"),
        (b"123L", "a run of negative length"),
        (b"PPPPPPPPPPPPPPPPPPPP1", "more than 7 characters"),
    ],
)
def test_damage_is_named(counts: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        decode_counts(counts)
    with pytest.raises(ValueError, match=words):
        decode_masks([b"4", counts], 2, 2)


def test_a_string_cut_within_a_number_is_not_completed_by_the_next_masks() -> None:
    assert decode_all([b"T1", b"4"])[0].tolist() == [36, 4]
    with pytest.raises(ValueError, match="ends inside a number"):
        decode_all([b"T", b"14"])


@given(several)
def test_masks_come_back(masks_KHW: np.ndarray) -> None:
    decoded_KHW = decode_masks([encoded(mask_HW) for mask_HW in masks_KHW], *masks_KHW.shape[1:])
    assert decoded_KHW.dtype == np.uint8
    assert (decoded_KHW == masks_KHW).all()


@pytest.mark.parametrize("counts", [b"3", b"5", b"", b"22222", b"9"])
def test_runs_that_do_not_cover_the_image_are_refused(counts: bytes) -> None:
    edges = np.arange(3.0)
    with pytest.raises(ValueError, match=r"runs that cover \d+ pixels, not 2 x 2"):
        decode_masks([b"4", counts], 2, 2)
    with pytest.raises(ValueError, match=r"runs that cover \d+ pixels, not 2 x 2"):
        coverage([b"4", counts], edges, edges, (2, 2))


def shares(edges: np.ndarray, cells: int) -> np.ndarray:
    """(cells, pixels): how much of each cell each pixel covers."""
    low, high = np.minimum(edges[1:], edges[:-1]), np.maximum(edges[1:], edges[:-1])
    cell = np.arange(cells)[:, None]
    return np.clip(np.minimum(high, cell + 1) - np.maximum(low, cell), 0, None)


@st.composite
def edges_of(draw: st.DrawFn, pixels: int, cells: int) -> np.ndarray:
    """Edges of pixels on a grid as a cut, zoom or shift puts them."""
    scale, shift = draw(st.floats(0.01, 5)), draw(st.floats(-20, 20))
    return np.clip(np.arange(pixels + 1) * scale + shift, 0, cells)


@given(st.data(), several, st.integers(1, 12), st.integers(1, 12), st.booleans())
def test_shares_of_a_grid_are_exact(data: st.DataObject, masks_KHW: np.ndarray, h: int, w: int, mirrored: bool) -> None:
    _, height, width = masks_KHW.shape
    edge_H, edge_W = data.draw(edges_of(height, h)), data.draw(edges_of(width, w))
    edge_W = w - edge_W if mirrored else edge_W
    found_Khw = coverage([encoded(mask_HW) for mask_HW in masks_KHW], edge_H, edge_W, (h, w))
    expected_Khw = shares(edge_H, h) @ masks_KHW.astype(float) @ shares(edge_W, w).T
    assert found_Khw.dtype == np.uint8
    assert np.abs(found_Khw - 255 * expected_Khw).max() <= 0.5 + 1e-6


def test_runs_of_no_length_and_runs_over_many_columns() -> None:
    """Zeros of length 0 within a mask, and one run over three columns of two pixels: 1 zero, then ones."""
    runs = [1, 2, 0, 3]
    counts = coco.frPyObjects({"size": [2, 3], "counts": runs}, 2, 3)["counts"]
    assert decode_masks([counts], 2, 3)[0].tolist() == [[0, 1, 1], [1, 1, 1]]
    assert coverage([counts], np.arange(3.0), np.arange(4.0), (2, 3))[0].tolist() == [[0, 255, 255], [255] * 3]
