"""Image and masks to the model's square and back; training augmentation.

Shapes: H×W an original image, S the side of the square, h the side of the grid of logits, K masks.
"""

import io
import re
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, UnidentifiedImageError

from mres.records import ImageRecord, RecordError, Rle
from mres.stream.config import AugmentConfig, DataConfig

# What letterboxing leaves free: CLIP's mean colour, which normalises to zero.
FILL = (123, 117, 104)

_SIDES = {"left": "right", "right": "left"}
_SIDE_WORD = re.compile(r"(?<![a-z])(left|right)(?=most|hand|ward|[^a-z]|$)", re.IGNORECASE)


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
    return _place(width, height, side, resize, zoom=1.0, shift_x=0.0, shift_y=0.0)


def _place(width: int, height: int, side: int, resize: str, *, zoom: float, shift_x: float, shift_y: float) -> Geometry:
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
    place = _place(record.width, record.height, side, config.resize, zoom=zoom, shift_x=shift_x, shift_y=shift_y)
    return Geometry(place.width, place.height, place.box, place.rect, flipped=bool(flip))


def has_side_word(text: str) -> bool:
    return _SIDE_WORD.search(text) is not None


def swap_side_words(text: str) -> str:
    """What stays true of a mirrored image: left and right change places ("leftmost", "right-hand", "back_left" too)."""

    def swap(match: re.Match[str]) -> str:
        word = match.group(0)
        other = _SIDES[word.lower()]
        return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other

    return _SIDE_WORD.sub(swap, text)


def open_image(record: ImageRecord, where: str) -> Image.Image:
    """The record's image, not decoded yet.

    Raises:
        RecordError: not an image, or of another size than the record says.
    """
    try:
        image = Image.open(io.BytesIO(record.image))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise RecordError(f"{where}: record {record.id!r}: the image cannot be read ({error})") from None
    if image.size != (record.width, record.height):
        raise RecordError(
            f"{where}: record {record.id!r}: the image is {image.size[0]} x {image.size[1]} pixels, "
            f"the record says {record.width} x {record.height}"
        )
    return image


def square_image(image: Image.Image, geometry: Geometry, side: int, where: str) -> Image.Image:
    """Decodes (at reduced scale where the JPEG allows it), cuts, resizes and letterboxes: RGB, side × side.

    Raises:
        RecordError: naming `where`; the image is truncated or damaged.
    """
    x0, y0, x1, y1 = geometry.box
    left, top, right, bottom = geometry.rect
    shrink = min((x1 - x0) / (right - left), (y1 - y0) / (bottom - top))
    if shrink >= 2:
        image.draft("RGB", (int(image.width / shrink), int(image.height / shrink)))
    try:
        rgb = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise RecordError(f"{where}: the image cannot be decoded ({error})") from None
    scale_x, scale_y = rgb.width / geometry.width, rgb.height / geometry.height
    box = (x0 * scale_x, y0 * scale_y, x1 * scale_x, y1 * scale_y)
    if box != (0, 0, right - left, bottom - top) or rgb.size != (right - left, bottom - top):
        rgb = rgb.resize((right - left, bottom - top), Image.Resampling.BICUBIC, box=box)
    if geometry.rect != (0, 0, side, side):
        square = Image.new("RGB", (side, side), FILL)
        square.paste(rgb, (left, top))
        rgb = square
    return rgb.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if geometry.flipped else rgb


def jitter(image: Image.Image, augment: AugmentConfig, random: np.random.Generator) -> Image.Image:
    """Brightness and contrast, never hue: colours are what expressions name."""
    brightness, contrast = random.uniform(-1, 1, size=2)
    if augment.brightness:
        image = ImageEnhance.Brightness(image).enhance(1 + augment.brightness * brightness)
    if augment.contrast:
        image = ImageEnhance.Contrast(image).enhance(1 + augment.contrast * contrast)
    return image


def decode_masks(masks: list[Rle]) -> np.ndarray:
    """Binary masks_KHW, uint8 0/1."""
    from pycocotools import mask as coco_mask

    rles = [{"size": [m.height, m.width], "counts": m.counts} for m in masks]
    return np.ascontiguousarray(coco_mask.decode(rles).transpose(2, 0, 1))


def encode_mask(mask_HW: np.ndarray) -> Rle:
    """COCO run-length encoding of a binary mask."""
    from pycocotools import mask as coco_mask

    encoded = coco_mask.encode(np.asfortranarray(mask_HW, dtype=np.uint8))
    return Rle(mask_HW.shape[0], mask_HW.shape[1], encoded["counts"])


def square_masks(masks: list[Rle], geometry: Geometry, side: int, stride: int) -> np.ndarray:
    """Masks in the square as the covered share of every logit's cell, uint8 0…255, masks_Khh with h = side / stride.

    Several expressions of one target share its mask, which is decoded once.
    """
    different = list(dict.fromkeys(masks))
    small_Uhh = np.stack([_square_mask(mask_WH, geometry, side, stride) for mask_WH in _decode_sideways(different)])
    position = {mask: u for u, mask in enumerate(different)}
    return np.ascontiguousarray(small_Uhh[[position[mask] for mask in masks]])


def _decode_sideways(masks: list[Rle]) -> np.ndarray:
    """Masks 0/255 as masks_KWH: RLE runs down the columns, so this is how they lie in memory, and nothing is copied."""
    from pycocotools import mask as coco_mask

    rles = [{"size": [m.height, m.width], "counts": m.counts} for m in masks]
    masks_KWH: np.ndarray = coco_mask.decode(rles).transpose(2, 1, 0)
    return np.multiply(masks_KWH, np.uint8(255))


def _square_mask(mask_WH: np.ndarray, geometry: Geometry, side: int, stride: int) -> np.ndarray:
    """One mask_hh. It stays on its side (x and y exchanged) until it is small."""
    (x0, y0, x1, y1), (left, top, right, bottom) = geometry.box, geometry.rect
    size = (bottom - top, right - left)
    mask = Image.fromarray(mask_WH)
    if geometry.box != (0, 0, right - left, bottom - top) or mask.size != size:
        # First whole-pixel averages, then bilinear: as good at these ratios, at a fraction of the time.
        mask = mask.resize(size, Image.Resampling.BILINEAR, box=(y0, x0, y1, x1), reducing_gap=2.0)
    if geometry.rect != (0, 0, side, side):
        square = Image.new("L", (side, side))
        square.paste(mask, (top, left))
        mask = square
    mask_hh = np.asarray(mask.reduce(stride) if stride > 1 else mask).T
    return mask_hh[:, ::-1] if geometry.flipped else mask_hh
