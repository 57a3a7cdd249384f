"""One image and expressions to masks and an overlay, from a checkpoint alone.

Shapes: K expressions, H×W the image.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mres.errors import UserError
from mres.evaluate.drawn_file import check_drawn, write_drawn
from mres.evaluate.overlay import PREDICTION_COLOUR, drawing_size, grid, overlay, panel, resized_image, resized_mask
from mres.evaluate.segmenter import TextCut, load, read_image

_DRAWN_SIDE = 384
_COLUMNS = 3


def predict(
    checkpoint: Path, image: Path, texts: Sequence[str], out: Path, threshold: float | None, kind: str | None = None
) -> Iterator[str]:
    """Writes the overlay and a mask (0/255 PNG, the image's size) an expression; yields a line on each file.

    Raises:
        UserError: an unreadable image or checkpoint, an empty expression, a threshold outside of (0, 1), no place to write,
            or one that would replace the image, or, as a mask, a file that mres has not drawn.
    """
    paths = [out.with_name(f"{out.stem}-mask-{number}.png") for number in range(1, len(texts) + 1)]
    _check(texts, threshold)
    for path in (out, *paths):
        check_drawn(path, "--out", inputs=[image], named=path is out)
    rgb = read_image(image)
    segmenter = load(checkpoint, kind=kind)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", TextCut)
        masks_KHW = segmenter.segment(rgb, texts, threshold=threshold)
    yield from (f"warning: {warning.message}" for warning in warned if warning.category is TextCut)
    image_HW3 = np.asarray(rgb)
    size = drawing_size(rgb.width, rgb.height, _DRAWN_SIDE)
    panels = []
    for text, mask_HW in zip(texts, masks_KHW, strict=True):
        drawn = overlay(resized_image(image_HW3, size), resized_mask(mask_HW, size), PREDICTION_COLOUR)
        panels.append(panel(drawn, text))
    masks = {path: mask_HW.astype(np.uint8) * 255 for path, mask_HW in zip(paths, masks_KHW, strict=True)}
    write_drawn({**masks, out: grid(panels, _COLUMNS)})
    for path, text, mask_HW in zip(paths, texts, masks_KHW, strict=True):
        found = "" if mask_HW.any() else " (nothing found)"
        yield f"{path}: “{text}”, {100 * mask_HW.mean():.1f} % of the image{found}"
    yield f"{out}: overlay"


def _check(texts: Sequence[str], threshold: float | None) -> None:
    if not all(text.strip() for text in texts):
        raise UserError("--text is empty; say what to segment, such as --text 'left wheel of the red car'")
    if threshold is not None and not 0 < threshold < 1:
        raise UserError(f"--threshold {threshold} must lie between 0 and 1")
