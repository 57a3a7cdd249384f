"""A program beside the model that it was made of, on drawn pictures and questions about them.

Shapes: B images, K expressions an image, S side of the model's square, T tokens, h side of the grid of logits.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mres.evaluate.evaluator import predicted_masks
from mres.evaluate.iou import intersection_union, iou
from mres.evaluate.segmenter import Question, Segmenter, TextCut

# Float32 in another order of summation: measured differences are below 1e-4.
MAX_DIFFERENCE = 1e-3
MIN_IOU = 0.99
_MIN_FOREGROUND = 0.01
_COLOURS = {"red": (220, 40, 40), "green": (40, 190, 60), "blue": (50, 70, 220)}
# Images and expressions of each; one of either, and more than a program was traced with.
SIZES = ((1, 1), (1, 3), (1, 12), (3, 5))

Run = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Compared:
    """One call: the largest difference of a logit, the smallest IoU of a pair of masks, their foreground in pixels."""

    images: int
    expressions: int
    difference: float
    iou: float
    pixels: int

    @property
    def agrees(self) -> bool:
        return self.difference <= MAX_DIFFERENCE and self.iou >= MIN_IOU

    def __str__(self) -> str:
        return (
            f"{self.images} x {self.expressions} expressions: logits differ by at most {self.difference:.1e}, "
            f"IoU of the masks at least {self.iou:.4f} ({self.pixels:,} pixels)" + ("" if self.agrees else ": TOO FAR")
        )


def compare(segmenter: Segmenter, run: Run) -> Iterable[Compared]:
    """`run` and the model on the same inputs, of several sizes."""
    for (images, expressions), first in zip(SIZES, itertools.accumulate(images for images, _ in SIZES), strict=False):
        questions = [_question(segmenter, first + i, expressions) for i in range(images)]
        yield _compared(segmenter, run, questions)


def _question(segmenter: Segmenter, index: int, expressions: int) -> Question:
    """A picture of boxes, and what may be asked of one: whether it is true is the same to both."""
    draw = np.random.default_rng(index)
    pixels_HW3 = np.full((96, 128, 3), 96, np.uint8)
    for colour in _COLOURS.values():
        y, x = draw.integers(0, 64, 2)
        pixels_HW3[y : y + 32, x : x + 48] = colour
    texts = itertools.cycle(f"the {place}{name} box" for place in ("", "left side of the ") for name in _COLOURS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TextCut)  # cut or not, both get the same
        return segmenter.question(pixels_HW3, list(itertools.islice(texts, expressions)))


def _compared(segmenter: Segmenter, run: Run, questions: list[Question]) -> Compared:
    image_BCSS = torch.cat([question.image_1CSS for question in questions])
    text_BKT = torch.stack([question.text_KT for question in questions])
    with torch.no_grad():
        own_BKhh = segmenter.task.logits(segmenter.model, image_BCSS, text_BKT)
        their_BKhh = run(image_BCSS, text_BKT)
    side, threshold = segmenter.task.shape.side, _threshold(segmenter.config.evaluate.threshold, own_BKhh)
    ious, pixels = [], 0
    for question, own_Khh, their_Khh in zip(questions, own_BKhh, their_BKhh, strict=True):
        masks = (predicted_masks(logits, question.geometry, side, threshold) for logits in (own_Khh, their_Khh))
        for own_HW, their_HW in zip(*masks, strict=True):
            ious.append(iou(*intersection_union(their_HW, own_HW)))
            pixels += int(own_HW.sum())
    difference = float((own_BKhh - their_BKhh).abs().max())  # NaN stays NaN, and agrees with nothing
    return Compared(len(questions), text_BKT.shape[1], difference, min(ious), pixels)


def _threshold(threshold: float, logits_BKhh: Tensor) -> float:
    """The run's, or the median where that finds next to nothing: two empty masks would say nothing."""
    probabilities = logits_BKhh.float().sigmoid()
    enough = bool((probabilities > threshold).float().mean() > _MIN_FOREGROUND)
    return threshold if enough else float(probabilities.median())
