"""Masks drawn on images: a translucent fill and a contour in colours that colour-blind people can tell apart.

Shapes: H×W the image as drawn; h×w an image before it is enlarged.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Colour = tuple[int, int, int]

# Of the Okabe–Ito palette.
BLUE: Colour = (0, 114, 178)
ORANGE: Colour = (230, 159, 0)
TRUTH_COLOUR, PREDICTION_COLOUR = BLUE, ORANGE

_PAPER: Colour = (255, 255, 255)
_INK: Colour = (34, 34, 34)
_OPACITY, _FADE = 0.4, 0.7  # of the fill; how far the outside turns into grey
_OUTLINE = 2  # pixels, inside the mask, with a thin white line around it
_FONT_SIZE, _MAX_LINES = 15, 3  # of a caption, in pixels and lines
_GAP = 8  # pixels between the pictures of a grid


def overlay(image_HW3: np.ndarray, mask_HW: np.ndarray, colour: Colour) -> np.ndarray:
    """A copy of `image_HW3` (uint8) with `mask_HW` (bool) filled and outlined in `colour`.

    What lies outside the mask turns into light grey, so that the mask stands out whatever the colours of the image are.
    """
    assert image_HW3.shape == (*mask_HW.shape, 3), (image_HW3.shape, mask_HW.shape)
    assert image_HW3.dtype == np.uint8, image_HW3.dtype
    assert mask_HW.dtype == np.bool_, mask_HW.dtype
    image = Image.fromarray(image_HW3)
    inside = Image.blend(image, Image.new("RGB", image.size, colour), _OPACITY)
    outside = Image.blend(image, _light_grey(image), _FADE)
    drawn_HW3 = np.where(mask_HW[:, :, None], np.asarray(inside), np.asarray(outside))
    drawn_HW3[_grown(mask_HW, 1) & ~mask_HW] = _PAPER
    drawn_HW3[mask_HW & ~_shrunk(mask_HW, _OUTLINE)] = colour
    return drawn_HW3


def _light_grey(image: Image.Image) -> Image.Image:
    """Its lightness in the upper part of the scale: fading to it brightens and takes the colour away."""
    return image.convert("L").point(lambda lightness: 110 + lightness * (145 / 255)).convert("RGB")


def _grown(mask_HW: np.ndarray, pixels: int) -> np.ndarray:
    image = Image.fromarray(mask_HW.astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.MaxFilter(2 * pixels + 1))).astype(bool)


def _shrunk(mask_HW: np.ndarray, pixels: int) -> np.ndarray:
    """What is left of a mask without its rim; the image's border counts as outside."""
    shrunk_HW: np.ndarray = ~_grown(~np.pad(mask_HW, pixels), pixels)
    return shrunk_HW[pixels:-pixels, pixels:-pixels]


def drawing_size(width: int, height: int, side: int) -> tuple[int, int]:
    """(width, height) at which an image is drawn so that its longer side has `side` pixels."""
    scale = side / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def resized_image(image_hw3: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The image at `size` (width, height), smooth in both directions."""
    return np.asarray(Image.fromarray(image_hw3).resize(size, Image.Resampling.BICUBIC))


def resized_mask(mask_hw: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The mask at `size` (width, height) with a smooth outline; a mask with pixels never vanishes."""
    grey = Image.fromarray(mask_hw.astype(np.uint8) * np.uint8(255)).resize(size, Image.Resampling.BILINEAR)
    grey_HW = np.asarray(grey)
    mask_HW: np.ndarray = grey_HW >= 128
    if mask_hw.any() and not mask_HW.any():
        return grey_HW == grey_HW.max()
    return mask_HW


def panel(image_HW3: np.ndarray, caption: str) -> np.ndarray:
    """The image with a caption under it on white, wrapped to its width, at most three lines."""
    from matplotlib import get_data_path

    margin = _FONT_SIZE // 2
    # DejaVu Sans, which matplotlib brings along: Pillow's own font has Latin letters only.
    font = ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), _FONT_SIZE)
    width = image_HW3.shape[1]
    lines = _wrapped(caption, font, width - 2 * margin)
    line_height = round(_FONT_SIZE * 1.35)
    out = Image.new("RGB", (width, image_HW3.shape[0] + len(lines) * line_height + 2 * margin), _PAPER)
    out.paste(Image.fromarray(image_HW3), (0, 0))
    draw = ImageDraw.Draw(out)
    for number, line in enumerate(lines):
        draw.text((margin, image_HW3.shape[0] + margin + number * line_height), line, font=font, fill=_INK)
    return np.asarray(out)


def grid(images: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Images (H×W×3 each, of any sizes) in rows of at most `columns` on white."""
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    widths = [max(row[c].shape[1] for row in rows if c < len(row)) for c in range(min(columns, len(images)))]
    heights = [max(image.shape[0] for image in row) for row in rows]
    size = (sum(widths) + _GAP * (len(widths) + 1), sum(heights) + _GAP * (len(heights) + 1))
    out = Image.new("RGB", size, _PAPER)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            at = (sum(widths[:c]) + _GAP * (c + 1), sum(heights[:r]) + _GAP * (r + 1))
            out.paste(Image.fromarray(image), at)
    return np.asarray(out)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Greedy wrapping; a word that is too long is cut, and what does not fit in ends in an ellipsis."""
    lines: list[str] = []
    rest = " ".join(text.split())
    while rest and len(lines) < _MAX_LINES:
        fits = _fitting(rest, font, width)
        space = rest.rfind(" ", 0, fits + 1)
        end = fits if fits == len(rest) or space < 1 else space
        lines.append(rest[:end])
        rest = rest[end:].lstrip()
    if rest:
        last = lines[-1]
        lines[-1] = last[: _fitting(last, font, width - round(font.getlength("…")))].rstrip() + "…"
    return lines


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> int:
    """How many characters fit into `width` pixels; at least one."""
    fits = next((n for n in range(1, len(text) + 1) if font.getlength(text[:n]) > width), len(text) + 1) - 1
    return max(1, fits)
