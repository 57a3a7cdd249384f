"""Images that commands draw: whole or not at all, and never over what they were made of.

Shapes: H×W an image.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mres.errors import UserError
from mres.io.files import write_together
from mres.io.local import check_local

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_SOFTWARE = "mres"  # stands in each PNG that is drawn here


def check_drawn(
    path: Path,
    option: str,
    *,
    inputs: Sequence[Path] = (),
    endings: Sequence[str] = tuple(_FORMATS),
    named: bool = True,
) -> None:
    """Whether an image may be written to `path`, which was given as `option`.

    Args:
        inputs: what the image will be made of; under whatever name, it is not to be replaced.
        named: the user gave this very path; one that was made from theirs replaces only what mres drew.

    Raises:
        UserError: a URL, another ending, no folder, a folder in its place, one of the inputs, or a file of someone else.
    """
    check_local(path)
    if path.suffix.lower() not in endings:
        raise UserError(f"{option} '{path}' must end in {', '.join(endings)}")
    if not path.resolve().parent.is_dir():
        raise UserError(f"{option}: no folder '{path.resolve().parent}'; make it first")
    if path.is_dir():
        raise UserError(f"{option}: '{path}' is a folder; name a file")
    if path.exists() and (source := next((i for i in inputs if i.exists() and os.path.samefile(i, path)), None)):
        raise UserError(f"{option}: '{path}' would replace '{source}', which it is made of; name another")
    if not named and path.exists() and not _is_ours(path):
        raise UserError(
            f"{option}: '{path}' is there, and this mres has not drawn it; move it away, or name another {option}"
        )


def _is_ours(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.info.get("Software") == _SOFTWARE
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def write_drawn(images: Mapping[Path, np.ndarray]) -> None:
    """Writes uint8 images, (H, W) or (H, W, 3), each in the format that its path's ending names: all of them or none.

    Raises:
        UserError: the format has no such large images.
    """
    write_together({path: _encoded(image, path) for path, image in images.items()})


def _encoded(image: np.ndarray, path: Path) -> bytes:
    encoded = io.BytesIO()
    try:
        _save(image, encoded, _FORMATS[path.suffix.lower()])
    except (OSError, ValueError) as error:
        size = f"{image.shape[1]}×{image.shape[0]} pixels"
        raise UserError(f"'{path}' of {size} cannot be encoded: {error}; name a .png") from None
    return encoded.getvalue()


def _save(image: np.ndarray, file: io.BytesIO, format_name: str) -> None:
    if format_name != "PNG":
        Image.fromarray(image).save(file, format_name)
        return
    text = PngInfo()
    text.add_text("Software", _SOFTWARE)
    Image.fromarray(image).save(file, format_name, pnginfo=text)
