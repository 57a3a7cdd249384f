"""One image and expressions to masks and an overlay, from a checkpoint alone.

Shapes: K expressions, S side of the model's square, H×W the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from mres.checkpoint.pretrained import load_weights, run_config
from mres.config import Config
from mres.errors import UserError
from mres.evaluate.evaluator import predicted_masks
from mres.evaluate.overlay import PREDICTION_COLOUR, drawing_size, grid, overlay, panel, resized_image, resized_mask
from mres.stream import transforms
from mres.stream.image import place
from mres.train.task import SegmentationTask

_DRAWN_SIDE = 384
_COLUMNS = 3


def predict(checkpoint: Path, image: Path, texts: Sequence[str], out: Path, threshold: float | None) -> Iterator[str]:
    """Writes the overlay and a mask (0/255 PNG, the image's size) an expression; yields a line on each file.

    Raises:
        UserError: an unreadable image or checkpoint, an empty expression, a threshold outside of (0, 1), no place to write.
    """
    _check(texts, threshold, out)
    rgb = _read(image)
    config = run_config(checkpoint)
    masks_KHW, num_cut = _masks(config, checkpoint, rgb, texts, threshold or config.evaluate.threshold)
    if num_cut:
        yield f"warning: {num_cut} expression(s) are longer than model.text_length={config.model.text_length} tokens; the end was cut off"
    image_HW3 = np.asarray(rgb)
    size = drawing_size(rgb.width, rgb.height, _DRAWN_SIDE)
    panels = []
    for number, (text, mask_HW) in enumerate(zip(texts, masks_KHW, strict=True), start=1):
        path = out.with_name(f"{out.stem}-mask-{number}.png")
        Image.fromarray(mask_HW.astype(np.uint8) * 255).save(path)
        drawn = overlay(resized_image(image_HW3, size), resized_mask(mask_HW, size), PREDICTION_COLOUR)
        panels.append(panel(drawn, text))
        yield f"{path}: “{text}”, {100 * mask_HW.mean():.1f} % of the image" + (
            "" if mask_HW.any() else " (nothing found)"
        )
    Image.fromarray(grid(panels, min(_COLUMNS, len(panels)))).save(out)
    yield f"{out}: overlay"


def _check(texts: Sequence[str], threshold: float | None, out: Path) -> None:
    if not all(text.strip() for text in texts):
        raise UserError("--text is empty; say what to segment, such as --text 'left wheel of the red car'")
    if threshold is not None and not 0 < threshold < 1:
        raise UserError(f"--threshold {threshold} must lie between 0 and 1")
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise UserError(f"--out '{out}' must end in .png, .jpg or .webp")
    if not out.resolve().parent.is_dir():
        raise UserError(f"--out: no folder '{out.resolve().parent}'; make it first")


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError:
        raise UserError(f"no image at '{path}'") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"'{path}' cannot be read as an image: {error}") from None


def _masks(
    config: Config, checkpoint: Path, rgb: Image.Image, texts: Sequence[str], threshold: float
) -> tuple[list[np.ndarray], int]:
    task = SegmentationTask(config.model, config.loss)
    model = task.build(config.run.seed)
    load_weights(model, config.model, checkpoint)
    side = task.shape.side
    geometry = transforms.fit(rgb.width, rgb.height, side, config.data.resize)
    image_1CSS = torch.empty(1, 3, side, side, dtype=torch.uint8)
    place(np.array(rgb), geometry, image_1CSS[0])
    text_KT, num_cut = task.tokenizer(texts)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.eval().to(device)
    with torch.no_grad():
        logits_1Khh = task.logits(model, image_1CSS.to(device), text_KT[None].to(device))
    return predicted_masks(logits_1Khh[0].float(), geometry, side, threshold), num_cut
