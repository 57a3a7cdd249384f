"""Masks that are pictures (as large as their image, 0 and 255) to run lengths."""

# Shapes: H, W = the image's height and width in pixels.

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from mres.io.files import read_regular
from mres.pixels.picture import MAX_IMAGE_BYTES, PictureError, header_of, open_picture, turned
from mres.records import RecordError, Rle, encode_mask
from mres.sources.coco_masks import EmptyMaskError, MaskSizeError

if TYPE_CHECKING:
    import numpy as np

_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")  # 8 bits a channel: what 0 and 255 mean is clear in no other
_OTHER_VALUES = "masks with values other than 0 and 255, cut at 127"


def read_mask(picture: Path | bytes, height: int, width: int, where: str, notes: "Counter[str]") -> Rle:
    """The mask in a picture: what is brighter than 127, and not transparent, belongs to it.

    An EXIF orientation of its own turns it upright, as one turns its image.

    Args:
        picture: its file, or its encoded bytes.
        height, width: of the image that it belongs to, in pixels; the picture must have the same.
        where: file and record, for messages.
        notes: where a mask with values other than 0 and 255 is counted.

    Raises:
        RecordError: no such file, not a picture, or without a pixel above 127 though not black.
        MaskSizeError: of another size.
        EmptyMaskError: all black.
    """
    grey_HW = _grey(picture, height, width, where)
    mask_HW = grey_HW > 127
    if not mask_HW.any():
        if brightest := int(grey_HW.max()):
            raise RecordError(f"{where}: the mask's brightest value is {brightest}, expected 0 and 255")
        raise EmptyMaskError(f"{where}: the mask covers no pixel")
    if ((grey_HW != 0) & (grey_HW != 255)).any():
        notes[_OTHER_VALUES] += 1
    return encode_mask(mask_HW)


def _grey(picture: Path | bytes, height: int, width: int, where: str) -> "np.ndarray":
    """The picture's grey values (H, W), upright; its size is checked before its pixels are decoded."""
    import numpy as np
    from PIL import Image

    content = _content(picture, where)
    try:
        with open_picture(content) as image:
            header = header_of(image, content)
            if header.upright_size != (width, height):
                raise MaskSizeError(f"{where}: the mask has {header.sizes()}, its image {width}x{height}")
            if image.mode not in _MODES:
                raise RecordError(f"{where}: the mask is of mode '{image.mode}', expected 8-bit grey values")
            image.load()
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
            return turned(np.asarray(image.convert("L")), header.orientation)
    except PictureError as error:
        raise RecordError(f"{where}: the mask {error}") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise RecordError(f"{where}: the mask cannot be decoded: {error}") from None


def _content(picture: Path | bytes, where: str) -> bytes:
    if isinstance(picture, bytes):
        return picture
    try:
        return read_regular(picture, MAX_IMAGE_BYTES)
    except OSError as error:
        raise RecordError(f"{where}: the mask '{picture}' cannot be read: {error.strerror}") from None
