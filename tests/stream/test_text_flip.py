"""Left and right in words: swapped where a side is meant, nowhere else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mres.stream.text_flip import flip_text, is_flip_sensitive


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
def test_flips_flip_text(text: str, swapped: str) -> None:
    assert flip_text(text) == swapped
    assert flip_text(swapped) == text
    assert is_flip_sensitive(text)


@pytest.mark.parametrize(
    "text", ["the bright car", "upright bottle", "leftover pizza", "a copyright sign", "cleft", "top"]
)
def test_flips_leave_other_words_alone(text: str) -> None:
    assert flip_text(text) == text
    assert not is_flip_sensitive(text)


@given(st.text(st.sampled_from("left rightLEFTmostbr-_,."), max_size=30))
def test_swapping_twice_is_nothing(text: str) -> None:
    assert flip_text(flip_text(text)) == text
