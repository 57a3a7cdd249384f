"""Where an image lies in the model's square, by rule or at random; masks on the grid of logits.

Shapes: H×W an original image, S the side of the square, h the side of the grid of logits, K masks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mres import rle
from mres.records import ImageRecord, Rle
from mres.stream.config import DataConfig


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where an image lies in its square: the source region `box` (x0, y0, x1, y1) fills the square's pixels `rect`."""

    width: int
    height: int
    box: tuple[float, float, float, float]
    rect: tuple[int, int, int, int]
    flipped: bool = False

    def to_original(self, map_SS: np.ndarray) -> np.ndarray:
        """Maps float values over the square back to (height, width), bilinear; for geometries that cut nothing off."""
        assert self.box == (0.0, 0.0, float(self.width), float(self.height)), "a cropped image cannot be mapped back"
        if self.flipped:
            map_SS = map_SS[:, ::-1]
        x0, y0, x1, y1 = self.rect
        return resize_map(map_SS[y0:y1, x0:x1], self.width, self.height)


def resize_map(map_hw: np.ndarray, width: int, height: int) -> np.ndarray:
    """Bilinear (antialiased where it shrinks) resize of a float map."""
    if map_hw.shape == (height, width):
        return map_hw
    image = Image.fromarray(np.ascontiguousarray(map_hw, dtype=np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def fit(width: int, height: int, side: int, resize: str) -> Geometry:
    """The geometry without augmentation: letterboxed (aspect kept, centred) or stretched."""
    return _fitted(width, height, side, resize, zoom=1.0, shift_x=0.0, shift_y=0.0)


def _fitted(
    width: int, height: int, side: int, resize: str, *, zoom: float, shift_x: float, shift_y: float
) -> Geometry:
    fit_x, fit_y = (side / width, side / height) if resize == "stretch" else (side / max(width, height),) * 2
    x = _interval(width, fit_x * zoom, shift_x, side)
    y = _interval(height, fit_y * zoom, shift_y, side)
    return Geometry(width, height, (x[0], y[0], x[1], y[1]), (x[2], y[2], x[3], y[3]))


def _interval(length: int, scale: float, shift: float, side: int) -> tuple[float, float, int, int]:
    """One axis: source interval and the whole pixels of the square that it fills."""
    size = max(1, round(length * scale))
    start = (side - size) // 2 + round(shift * side)
    start = min(max(start, 1 - size), side - 1)
    first, last = max(0, start), min(side, start + size)
    return (first - start) * length / size, (last - start) * length / size, first, last


def augmented(record: ImageRecord, side: int, config: DataConfig, random: np.random.Generator) -> Geometry:
    """A random geometry: zoom, shift and flip."""
    augment = config.augment
    low, high = augment.zoom
    zoom = float(np.exp(random.uniform(np.log(low), np.log(high))))
    shift_x, shift_y = random.uniform(-augment.shift, augment.shift, size=2)
    flip = random.random() < augment.flip
    still = _fitted(record.width, record.height, side, config.resize, zoom=zoom, shift_x=shift_x, shift_y=shift_y)
    return Geometry(still.width, still.height, still.box, still.rect, flipped=bool(flip))


def square_masks(masks: Sequence[Rle], geometry: Geometry, side: int, stride: int) -> np.ndarray:
    """Masks in the square as the covered share of every logit's cell, uint8 0…255, masks_Khh with h = side / stride.

    Several expressions of one target share its mask, which is decoded once.

    Raises:
        ValueError: run lengths that are damaged or do not cover the image.
    """
    (x0, y0, x1, y1), (left, top, right, bottom) = geometry.box, geometry.rect
    edge_H = _edges(geometry.height, (y0, y1), (top, bottom)) / stride
    edge_W = _edges(geometry.width, (x0, x1), (left, right)) / stride
    if geometry.flipped:
        edge_W = side / stride - edge_W
    different = list(dict.fromkeys(mask.counts for mask in masks))
    shares_Uhh = rle.coverage(different, edge_H, edge_W, (side // stride, side // stride))
    position = {counts: u for u, counts in enumerate(different)}
    return shares_Uhh[[position[mask.counts] for mask in masks]]


def _edges(length: int, shown: tuple[float, float], filled: tuple[int, int]) -> np.ndarray:
    """Where the edges between an image's pixels lie in the square, float64 (length + 1,); none outside of the image."""
    (low, high), (first, last) = shown, filled
    return np.clip(first + (np.arange(length + 1) - low) * ((last - first) / (high - low)), first, last)
