"""Draws placed objects: the picture and, from the same label map, the exact visible mask of every part.

The label map is drawn at twice the image's side (one label a polygon); the picture is its palette averaged over 2 x 2
pixels, the masks are every second pixel of it.

Suffixes: H, W the image's height and width; D the side of the double-size map; 3 = RGB; N2 points (x, y).
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from scenes.layout import Placed, pick
from scenes.shapes import Rgb, paint_rgb

JPEG_QUALITY = 92
NOISE = 2.5  # standard deviation of the pixel noise, in grey levels
OUTLINE = 0.62  # brightness of the lines between polygons

# Pale, so that the saturated objects stand out: sky at the top, sky at the horizon, ground far, ground near.
LANDSCAPES: tuple[tuple[Rgb, Rgb, Rgb, Rgb], ...] = (
    ((146, 196, 232), (226, 240, 246), (190, 210, 160), (150, 182, 122)),  # meadow
    ((158, 204, 226), (244, 240, 226), (236, 222, 186), (216, 194, 148)),  # beach
    ((176, 192, 214), (232, 236, 242), (240, 244, 248), (206, 216, 228)),  # snow
    ((236, 190, 170), (250, 228, 204), (212, 184, 160), (180, 148, 126)),  # evening in the desert
    ((128, 168, 204), (206, 224, 232), (150, 194, 208), (104, 158, 182)),  # water
    ((178, 186, 222), (236, 228, 240), (206, 196, 220), (170, 158, 194)),  # lavender
)


@dataclass(frozen=True)
class DrawnPart:
    """A part's name, its visible mask and its pixels, and which fraction of it other objects leave visible."""

    name: str
    mask_HW: NDArray[np.bool_]
    pixels: int
    visible: float


@dataclass(frozen=True)
class DrawnObject:
    """An object's visible mask (the union of its parts'), the fraction of it that is visible, and its parts."""

    mask_HW: NDArray[np.bool_]
    visible: float
    parts: tuple[DrawnPart, ...]


def label_map(objects: Sequence[Placed], size: int) -> tuple[NDArray[np.uint8], list[int]]:
    """The objects' polygons drawn one over the other, later objects hiding earlier ones.

    Returns:
        The label map at twice `size` (0 background, i + 1 the i-th polygon of all), and for each label the pixels that
        it had before later objects came.
    """
    side = 2 * size
    canvas = Image.new("L", (side, side))
    pen = ImageDraw.Draw(canvas)
    exposed = [0]
    for thing in objects:
        first = len(exposed)
        for label, polygon in enumerate(thing.shape, start=first):
            pen.polygon([(x, y) for x, y in (polygon.points_N2 * side).tolist()], fill=label)
        exposed += canvas.histogram()[first : first + len(thing.shape)]
    assert len(exposed) <= 256, "a label map has 8 bits"
    return np.asarray(canvas), exposed


def visible_masks(objects: Sequence[Placed], labels_DD: NDArray[np.uint8], exposed: list[int]) -> list[DrawnObject]:
    """What of each object and of its parts is visible in a label map, in the order of `objects`."""
    shown = np.bincount(labels_DD.ravel(), minlength=len(exposed))
    part_of = np.zeros(256, dtype=np.uint8)  # label -> number of its part, counted over all objects from 1
    names = [list(dict.fromkeys(polygon.part for polygon in thing.shape)) for thing in objects]
    firsts = np.cumsum([1] + [len(own) for own in names]).tolist()
    owned = [
        first + own.index(p.part)
        for thing, own, first in zip(objects, names, firsts, strict=False)
        for p in thing.shape
    ]
    part_of[1 : len(exposed)] = owned
    parts_HW = part_of[labels_DD[::2, ::2]]
    whole = np.bincount(part_of[: len(exposed)], weights=exposed, minlength=firsts[-1])
    seen = np.bincount(part_of[: len(exposed)], weights=shown, minlength=firsts[-1])
    pixels = np.bincount(parts_HW.ravel(), minlength=firsts[-1])
    drawn = []
    for own, first, end in zip(names, firsts, firsts[1:], strict=False):
        parts = tuple(
            DrawnPart(name, parts_HW == number, int(pixels[number]), float(seen[number] / max(1.0, whole[number])))
            for number, name in enumerate(own, start=first)
        )
        mask_HW = (parts_HW >= first) & (parts_HW < end)
        drawn.append(DrawnObject(mask_HW, float(seen[first:end].sum() / whole[first:end].sum()), parts))
    return drawn


def picture(rng: np.random.Generator, objects: Sequence[Placed], labels_DD: NDArray[np.uint8], horizon: float) -> bytes:
    """The JPEG of a label map: the objects in their colours before a landscape."""
    image_HW3 = _shade(objects, labels_DD, _background(rng, horizon, len(labels_DD) // 2))
    image_HW3 += rng.standard_normal(image_HW3.shape, dtype=np.float32) * NOISE
    jpeg = io.BytesIO()
    pixels_HW3 = np.clip(image_HW3, 0, 255).astype(np.uint8)
    Image.fromarray(pixels_HW3).save(jpeg, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return jpeg.getvalue()


def _background(rng: np.random.Generator, horizon: float, size: int) -> NDArray[np.float32]:
    """Sky and ground with soft clouds, hills at the horizon and a coarse texture."""
    sky_top, sky_low, ground_far, ground_near = np.array(pick(rng, LANDSCAPES), dtype=np.float32)
    y_H1 = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    sky_H13 = (sky_top + (sky_low - sky_top) * (y_H1 / horizon).clip(0, 1))[:, None]
    ground_H13 = (ground_far + (ground_near - ground_far) * ((y_H1 - horizon) / (1 - horizon)).clip(0, 1))[:, None]
    hills_1W = horizon - 0.07 * _noise(rng, (1, 6), size)[0] ** 2
    clouds_HW1 = (_noise(rng, (7, 4), size)[..., None] - 0.55).clip(0, 1) * 90
    texture_HW1 = (_noise(rng, (40, 12), size)[..., None] - 0.5) * 34
    return np.where((y_H1 > hills_1W)[..., None], ground_H13 + texture_HW1, sky_H13 + clouds_HW1)


def _noise(rng: np.random.Generator, cells: tuple[int, int], size: int) -> NDArray[np.float32]:
    """Smooth noise in about 0..1 of `cells` rows and columns, enlarged to size x size."""
    coarse = Image.fromarray(rng.random(cells, dtype=np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


def _shade(
    objects: Sequence[Placed], labels_DD: NDArray[np.uint8], background_HW3: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The picture: palette colours with outlines and light from above, laid over the background."""
    palette = [(0, 0, 0)] + [paint_rgb(polygon.paint, thing.rgb) for thing in objects for polygon in thing.shape]
    picture = Image.fromarray(labels_DD).convert("P")
    picture.putpalette([value for rgb in palette for value in rgb])
    colour_HW3 = np.asarray(picture.convert("RGB").reduce(2), dtype=np.float32)
    cover_HW = _halved((labels_DD > 0) * np.uint8(255)) / 255
    lines_DD = np.zeros(labels_DD.shape, dtype=np.bool_)
    lines_DD[:, 1:] = labels_DD[:, 1:] != labels_DD[:, :-1]
    lines_DD[1:] |= labels_DD[1:] != labels_DD[:-1]
    light_HW = 1 - (1 - OUTLINE) / 255 * _halved(lines_DD * np.uint8(255))
    light_HW *= _light(objects, labels_DD[::2, ::2])
    return (colour_HW3 + (1 - cover_HW)[..., None] * background_HW3) * light_HW[..., None]


def _light(objects: Sequence[Placed], labels_HW: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Brightness of each pixel: every object is lit from above."""
    size = len(labels_HW)
    slope, start = [0.0], [1.0]
    for thing in objects:
        top, height = thing.box[1], thing.box[3] - thing.box[1]
        slope += [-0.26 / height / size] * len(thing.shape)
        start += [1.1 + 0.26 * top / height] * len(thing.shape)
    y_H1 = np.arange(size, dtype=np.float32)[:, None]
    light_HW: NDArray[np.float32] = (
        np.array(slope, np.float32)[labels_HW] * y_H1 + np.array(start, np.float32)[labels_HW]
    )
    return light_HW


def _halved(values_DD: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.asarray(Image.fromarray(values_DD).reduce(2), dtype=np.float32)
