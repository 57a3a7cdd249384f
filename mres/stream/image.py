"""An encoded image to the model's square: decoded no larger than needed, cut, resized, letterboxed, mirrored, jittered.

Shapes: H×W an original image, C = 3 colours (RGB), S the side of the square; h×w pixels as decoded.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mres.pixels.picture import PictureError, check_size, open_picture
from mres.records import ImageRecord, RecordError
from mres.stream.config import AugmentConfig
from mres.stream.transforms import Geometry

if TYPE_CHECKING:
    from torch import Tensor

# What letterboxing leaves free: CLIP's mean colour, which normalises to zero.
FILL = (123, 117, 104)

_REDUCTIONS = (8, 4, 2)  # sizes that a JPEG can be decoded at for less: one over these
_PLAIN_COLOURS = ("YCbCr", "RGB", "Gray")  # of JPEGs, not CMYK nor YCCK
_GREY = np.array([0.299, 0.587, 0.114])
# Resizing the whole image and taking a window is exact and quick, unless much is thrown away: then Pillow cuts first.
_MOST_THROWN_AWAY = 2.0
_ROUND_UP = 1 + 1e-9  # so that a whole number of pixels is not rounded down to the one before


def open_image(record: ImageRecord, where: str) -> Image.Image:
    """The record's image, not decoded yet.

    Raises:
        RecordError: not an image, or of another size than the record says.
    """
    try:
        image = open_picture(record.image)
    except PictureError as error:
        raise RecordError(f"{where}: record {record.id!r}: the image {error}") from None
    if image.size != (record.width, record.height):
        raise RecordError(
            f"{where}: record {record.id!r}: the image is {image.size[0]} x {image.size[1]} pixels, "
            f"the record says {record.width} x {record.height}"
        )
    return image


def square_image(record: ImageRecord, geometry: Geometry, image_CSS: Tensor, where: str) -> None:
    """Decodes the record's image and writes it into `image_CSS`, uint8, as `geometry` says.

    Raises:
        RecordError: naming `where` and the record; not an image, of another size, truncated or damaged.
    """
    reduction = reduction_of(geometry)
    pixels_hwC = decode_plain_jpeg(record, reduction)
    if pixels_hwC is None:
        pixels_hwC, reduction = _decode(open_image(record, where), record, reduction, where)
    paste(pixels_hwC, geometry, image_CSS, reduction)


def reduction_of(geometry: Geometry) -> int:
    """By what the sides can be divided in decoding so that what is left still has to shrink, or fits."""
    (x0, y0, x1, y1), (left, top, right, bottom) = geometry.box, geometry.rect
    shrink = min((x1 - x0) / (right - left), (y1 - y0) / (bottom - top))
    return next((reduction for reduction in _REDUCTIONS if shrink >= reduction), 1)


def decode_plain_jpeg(record: ImageRecord, reduction: int) -> np.ndarray | None:
    """pixels_hwC of a JPEG in colours or grey at 1/reduction; None for anything else, and whatever is wrong with it.

    libjpeg-turbo alone is quicker than through Pillow and gives the same pixels. It is strict here, and whatever it
    refuses (CMYK, stray bytes, damage) Pillow judges.
    """
    import simplejpeg

    height, width = -(-record.height // reduction), -(-record.width // reduction)
    try:
        found = simplejpeg.decode_jpeg_header(record.image)
        if found[:2] != (record.height, record.width) or found[2] not in _PLAIN_COLOURS:
            return None
        check_size(record.width, record.height)
        pixels_hwC: np.ndarray = simplejpeg.decode_jpeg(record.image, min_height=height, min_width=width, fastdct=False)
    except ValueError:
        return None
    return pixels_hwC if pixels_hwC.shape == (height, width, 3) else None


def _decode(image: Image.Image, record: ImageRecord, reduction: int, where: str) -> tuple[np.ndarray, int]:
    """pixels_hwC of the image at 1/reduction, or where its format cannot be reduced at 1/1; and which it was."""
    drafted = image.draft("RGB", (image.width // reduction, image.height // reduction)) if reduction > 1 else None
    try:
        return np.array(image.convert("RGB")), reduction if drafted else 1
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise RecordError(f"{where}: record {record.id!r}: the image cannot be decoded ({error})") from None


def paste(pixels_hwC: np.ndarray, geometry: Geometry, image_CSS: Tensor, reduction: int = 1) -> None:
    """Cuts, resizes (bicubic, antialiased), mirrors and letterboxes pixels, decoded at 1/reduction, into `image_CSS`."""
    import torch

    side = image_CSS.shape[-1]
    left, top, right, bottom = geometry.rect
    resized_Chw = _resized(pixels_hwC, geometry, reduction)
    if geometry.flipped:
        resized_Chw, left, right = resized_Chw.flip(-1), side - right, side - left
    fill_C11 = torch.tensor(FILL, dtype=torch.uint8)[:, None, None]
    rows_Cxw = image_CSS[:, top:bottom]
    for margin in (image_CSS[:, :top], image_CSS[:, bottom:], rows_Cxw[..., :left], rows_Cxw[..., right:]):
        if margin.numel():
            margin.copy_(fill_C11)
    rows_Cxw[..., left:right] = resized_Chw


def _resized(pixels_hwC: np.ndarray, geometry: Geometry, reduction: int) -> Tensor:
    """The region that `geometry` shows, in the size that it takes of the square."""
    import torch

    window = _window(geometry)
    if window is None:
        left, top, right, bottom = geometry.rect
        x0, y0, x1, y1 = (edge / reduction for edge in geometry.box)
        size = (right - left, bottom - top)
        cut = Image.fromarray(pixels_hwC).resize(size, Image.Resampling.BICUBIC, (x0, y0, x1, y1))
        return torch.from_numpy(np.array(cut)).permute(2, 0, 1)
    (full_height, full_width), rows, columns = window
    image_1Chw = torch.from_numpy(pixels_hwC).permute(2, 0, 1)[None]
    scale = (full_height * reduction / geometry.height, full_width * reduction / geometry.width)
    if scale != (1, 1):
        # The scale, not the size: a side that the reduction does not divide is padded, and its image ends within the
        # last pixel. What is asked for beyond it, and for rounding's sake, the window leaves out.
        scale = (scale[0] * _ROUND_UP, scale[1] * _ROUND_UP)
        image_1Chw = torch.nn.functional.interpolate(image_1Chw, scale_factor=scale, mode="bicubic", antialias=True)
    return image_1Chw[0, :, rows, columns]


def _window(geometry: Geometry) -> tuple[tuple[int, int], slice, slice] | None:
    """The size (height, width) of the whole image at the square's scale, and the rows and columns that are shown.

    None where the region does not begin at a whole pixel of that size, or is a small part of it.
    """
    (x0, y0, x1, y1), (left, top, right, bottom) = geometry.box, geometry.rect
    width, height = right - left, bottom - top
    scale_x, scale_y = width / (x1 - x0), height / (y1 - y0)
    exact = np.array([geometry.height * scale_y, geometry.width * scale_x, y0 * scale_y, x0 * scale_x])
    whole = np.rint(exact)
    if np.abs(exact - whole).max() > 1e-6 or whole[0] * whole[1] > _MOST_THROWN_AWAY * width * height:
        return None
    full_height, full_width, first_row, first_column = (int(v) for v in whole)
    return (
        (full_height, full_width),
        slice(first_row, first_row + height),
        slice(first_column, first_column + width),
    )


def jitter(image_CSS: Tensor, augment: AugmentConfig, random: np.random.Generator) -> None:
    """Brightness and contrast in place, as Pillow's, never hue: colours are what expressions name."""
    brightness, contrast = random.uniform(-1, 1, size=2)
    if not augment.brightness and not augment.contrast:
        return
    level = np.clip(np.arange(256) * (1 + augment.brightness * brightness), 0, 255).astype(np.uint8)
    if augment.contrast:
        grey = round(float(_GREY @ _levels(image_CSS, level).reshape(3, -1).mean(axis=1)))
        level = np.clip(grey + (level - float(grey)) * (1 + augment.contrast * contrast), 0, 255).astype(np.uint8)
    image_CSS.numpy()[:] = _levels(image_CSS, level)


def _levels(image_CSS: Tensor, level: np.ndarray) -> np.ndarray:
    """Every value replaced by its new level; bytes do that several times as fast as an index would."""
    return np.frombuffer(image_CSS.numpy().tobytes().translate(level.tobytes()), np.uint8).reshape(image_CSS.shape)
