import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mres.evaluate.overlay import (
    BLUE,
    ORANGE,
    drawing_size,
    grid,
    overlay,
    panel,
    resized_image,
    resized_mask,
)

MASKS = arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


@given(MASKS)
def test_the_rim_has_the_full_colour_and_the_outside_none_of_it(mask_HW):
    drawn_HW3 = overlay(grey(*mask_HW.shape), mask_HW, ORANGE)
    (faded,) = {tuple(colour) for colour in overlay(grey(1, 1), np.zeros((1, 1), bool), ORANGE)[0]}
    for y, x in np.ndindex(mask_HW.shape):
        window_HW = np.pad(mask_HW, 1)[y : y + 3, x : x + 3]
        if mask_HW[y, x] and not window_HW.all():
            assert tuple(drawn_HW3[y, x]) == ORANGE
        elif not mask_HW[y, x]:  # faded, or the white line around the mask
            assert tuple(drawn_HW3[y, x]) == ((255, 255, 255) if window_HW.any() else faded)


def test_a_fill_lets_the_image_through():
    mask_HW = np.ones((20, 20), bool)
    drawn_HW3 = overlay(grey(20, 20), mask_HW, BLUE)
    assert np.abs(drawn_HW3[10, 10] - (0.4 * np.array(BLUE) + 0.6 * 128)).max() <= 1
    assert (drawn_HW3[0, 0] == BLUE).all()


def test_an_empty_mask_only_fades():
    image_HW3 = np.zeros((4, 4, 3), np.uint8)
    image_HW3[..., 0] = 200
    drawn_HW3 = overlay(image_HW3, np.zeros((4, 4), bool), BLUE)
    assert (drawn_HW3 == drawn_HW3[0, 0]).all()
    assert np.ptp(drawn_HW3[0, 0].astype(int)) < 100  # of 200: greyer
    assert drawn_HW3.mean() > image_HW3.mean()  # lighter
    assert (image_HW3[..., 0] == 200).all()  # the given image is not drawn on


def test_a_mask_of_another_size_is_a_bug_of_the_caller():
    with pytest.raises(AssertionError):
        overlay(grey(4, 5), np.zeros((5, 4), bool), BLUE)


@given(MASKS, st.integers(1, 40), st.integers(1, 40))
def test_a_resized_mask_has_pixels_exactly_where_the_original_has_some(mask_hw, width, height):
    mask_HW = resized_mask(mask_hw, (width, height))
    assert mask_HW.shape == (height, width)
    assert mask_HW.dtype == np.bool_
    assert mask_HW.any() == mask_hw.any()
    assert mask_HW.all() or not mask_hw.all()


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_the_longer_side_is_what_was_asked_for(width, height):
    drawn = drawing_size(width, height, 384)
    assert max(drawn) == 384
    assert min(drawn) >= 1
    assert (drawn[0] >= drawn[1]) == (width >= height) or drawn[0] == drawn[1]


def test_resized_images_keep_their_content():
    image_hw3 = np.zeros((8, 8, 3), np.uint8)
    image_hw3[:, 4:] = 255
    image_HW3 = resized_image(image_hw3, (64, 32))
    assert image_HW3.shape == (32, 64, 3)
    assert image_HW3[:, :24].max() == 0
    assert image_HW3[:, 40:].min() == 255


@pytest.mark.parametrize(
    "caption",
    ["the red car", "", "a " * 500, "x" * 1000, "Öl – Жук – Ωμέγα – 左の車", "line\nbreak\ttab", "<b>&amp;</b>"],
)
def test_captions_of_any_kind_fit(caption):
    drawn_HW3 = panel(grey(40, 120), caption)
    assert drawn_HW3.shape[1:] == (120, 3)
    assert 40 < drawn_HW3.shape[0] <= 40 + 4 * 20
    assert (drawn_HW3[:40] == 128).all()
    assert bool((drawn_HW3[40:] < 200).any()) == bool(caption.strip())
    assert (drawn_HW3[40:, -2:] == 255).all()  # nothing runs into the margin


def test_a_grid_holds_every_image():
    images = [np.full((10 + i, 20 - i, 3), i, np.uint8) for i in range(5)]
    drawn_HW3 = grid(images, columns=2)
    for i, image in enumerate(images):
        assert (drawn_HW3 == i).all(axis=2).sum() == image.shape[0] * image.shape[1]
    assert grid(images[:1], columns=4).shape == (10 + 2 * 8, 20 + 2 * 8, 3)
