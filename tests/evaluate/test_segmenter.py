"""A model that is asked: what it takes as an image, how many expressions, and what it refuses."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import MODEL

from mres.config import Config
from mres.errors import UserError
from mres.evaluate.segmenter import Segmenter, TextCut
from mres.model.task import SegmentationTask


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    """Untrained; its masks are not empty because it takes little to be foreground."""
    config = Config.model_validate({"model": {**MODEL, "dropout": 0.1}, "evaluate": {"threshold": 0.12}})
    task = SegmentationTask(config.model, config.loss)
    return Segmenter(task.build(0).eval(), task, config, torch.device("cpu"))


@pytest.fixture
def pixels_HW3() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (37, 91, 3), dtype=np.uint8)


def test_an_image_in_any_form_has_the_same_masks(segmenter: Segmenter, pixels_HW3: np.ndarray, tmp_path: Path) -> None:
    image = Image.fromarray(pixels_HW3)
    image.save(tmp_path / "photo.png")
    with io.BytesIO() as file:
        image.save(file, "PNG")
        content = file.getvalue()
    forms = [pixels_HW3, image, tmp_path / "photo.png", str(tmp_path / "photo.png"), content]
    masks = [segmenter.segment(form, ["the red car", "its left wheel"]) for form in forms]
    assert masks[0].shape == (2, 37, 91)
    assert masks[0].dtype == np.bool_
    assert 0 < masks[0].mean() < 1
    assert all(np.array_equal(masks[0], other) for other in masks)


def test_one_expression_may_stand_alone_and_many_are_as_each(segmenter: Segmenter, pixels_HW3: np.ndarray) -> None:
    texts = [f"the {number} cars" for number in range(33)]  # more than go through the decoder at once
    together = segmenter.segment(pixels_HW3, texts, threshold=0.11)
    for number in (0, 31, 32):
        alone = segmenter.segment(pixels_HW3, texts[number], threshold=0.11)
        assert np.mean(alone[0] == together[number]) > 0.999


def test_an_upright_image_is_asked_about(segmenter: Segmenter, pixels_HW3: np.ndarray, tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # turn by 90 degrees
    Image.fromarray(pixels_HW3).save(tmp_path / "turned.png", exif=turned)
    assert segmenter.segment(tmp_path / "turned.png", "the car").shape == (1, 91, 37)


def test_what_is_cut_off_a_text_is_said(segmenter: Segmenter, pixels_HW3: np.ndarray) -> None:
    with pytest.warns(TextCut, match=r"1 expression\(s\) are longer than the model's 14 tokens.*“a a a"):
        segmenter.segment(pixels_HW3, ["a car", "a " * 30])


@pytest.mark.parametrize(
    ("image", "texts", "threshold", "said"),
    [
        (np.zeros((4, 4), np.uint8), "a car", None, "found uint8 \\(4, 4\\)"),
        (np.zeros((4, 4, 3), np.float32), "a car", None, "found float32"),
        (b"no image", "a car", None, "the given bytes is a text"),
        ("nowhere.png", "a car", None, "no image at 'nowhere.png'"),
        (Image.new("RGB", (4, 4)), [], None, "an expression is empty"),
        (Image.new("RGB", (4, 4)), ["a car", " "], None, "an expression is empty"),
        (Image.new("RGB", (4, 4)), "a car", 1.0, "threshold 1.0 must lie between 0 and 1"),
    ],
)
def test_what_cannot_be_asked_is_one_message(segmenter: Segmenter, image, texts, threshold, said: str) -> None:
    with pytest.raises(UserError, match=said):
        segmenter.segment(image, texts, threshold=threshold)
