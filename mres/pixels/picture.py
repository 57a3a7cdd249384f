"""One truth about an encoded image: its picture is upright, of 8 bits, grey or RGB, whatever the file says and how.

Building, prediction, `mres.load`, the leak check and mask files ask here; what lies in a shard is such a picture
already, so that reading asks nothing.

Shapes: H×W the picture, C its colours.
"""

import io
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from mres.errors import install
from mres.pixels.foreign import is_heif, what_bytes_are
from mres.records import MAX_SIDE

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 178_956_970  # what Pillow takes for a bomb; 13,377 × 13,377
MAX_IMAGE_BYTES = 1 << 29
# In the order in which they are tried; what runs programs (EPS) or holds documents is not among them.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM")
_LOSSY = frozenset({"JPEG", "MPO", "AVIF", "HEIF", "JPEG2000"})  # and most WebP
_QUALITY = 95
ORIENTATION = 0x112
# One of these stands in a PNG that says how it is to be turned; in others, looking for it would decode the image.
_PNG_TAGS = (b"eXIf", b"XML:com.adobe.xmp", b"Raw profile type")
# By EXIF orientation: whether stored rows are the upright picture's columns; whether it is then mirrored left to right,
# and top to bottom.
_TURNS = {
    1: (False, False, False), 2: (False, True, False), 3: (False, True, True), 4: (False, False, True),
    5: (True, False, False), 6: (True, True, False), 7: (True, True, True), 8: (True, False, True),
}  # fmt: skip
_GREY_16 = ("I;16", "I;16B", "I;16L", "I;16N")
_DARK = 4096  # a picture of 16 bits is brighter somewhere; of 12 bits stored in 16 it is not


class PictureError(ValueError):
    """Bytes that give no picture; the message goes on after "the image", as in "is an HTML page"."""


@dataclass(frozen=True, slots=True)
class Header:
    """What an encoded image says of itself, its pixels not decoded.

    Attributes:
        size: (width, height) as stored.
        orientation: of EXIF, 1 to 8; 1 where there is none, or nonsense.
        is_plain: JPEG or PNG of 8 bits, grey or RGB, upright: what a shard holds as it is.
    """

    format: str
    mode: str
    size: tuple[int, int]
    orientation: int
    is_plain: bool

    @property
    def upright_size(self) -> tuple[int, int]:
        """(width, height) of the upright picture."""
        return self.size[::-1] if _TURNS[self.orientation][0] else self.size

    def sizes(self) -> str:
        """For messages."""
        (width, height), (w, h) = self.size, self.upright_size
        if self.orientation == 1:
            return f"{width}x{height} pixels"
        return f"stored {width}x{height}, upright {w}x{h} pixels (EXIF orientation {self.orientation})"


def read_header(content: bytes) -> Header:
    """Raises: PictureError: no image of a format that is read, or one of more pixels than may be."""
    with open_picture(content) as image:
        return header_of(image, content)


def upright_picture(content: bytes) -> "Image.Image":
    """The picture, upright, RGB. Raises: PictureError, as `read_header`; damaged, or of values that have no clear scale."""
    with open_picture(content) as image:
        return _upright(image, header_of(image, content).orientation).convert("RGB")


def upright_rgb(image: "Image.Image") -> "Image.Image":
    """The picture in an image that Pillow has opened, upright, RGB. Raises: PictureError."""
    check_size(*image.size)
    return _upright(image, orientation_of(image)).convert("RGB")


def plain_bytes(content: bytes) -> tuple[bytes, str]:
    """An encoding of the upright picture that `Header.is_plain`, and its format; a JPEG keeps its own quantisation.

    What was stored with loss becomes JPEG, all else PNG. Raises: PictureError, as `upright_picture`.
    """
    with open_picture(content) as image, io.BytesIO() as buffer:
        header = header_of(image, content)
        picture = _upright(image, header.orientation)
        is_lossy = header.format in _LOSSY or (header.format == "WEBP" and b"VP8L" not in content)
        if not is_lossy:
            picture.save(buffer, "PNG")
        elif header.format in ("JPEG", "MPO") and picture.mode == header.mode:
            picture.save(buffer, "JPEG", **_own_quality(image, header.orientation))
        else:
            picture.save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
        return buffer.getvalue(), "JPEG" if is_lossy else "PNG"


def turned(array_HW: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels as stored to pixels upright; further axes stay."""
    swap, mirror_x, mirror_y = _TURNS[orientation]
    array_HW = array_HW.swapaxes(0, 1) if swap else array_HW
    return array_HW[:: -1 if mirror_y else 1, :: -1 if mirror_x else 1]


def turned_box(
    box: tuple[float, float, float, float], size: tuple[int, int], orientation: int
) -> tuple[float, float, float, float]:
    """A box (x, y, width, height) in the image as stored, of (width, height) `size`, to the same in the upright picture."""
    (x, y, w, h), (width, height) = box, size
    swap, mirror_x, mirror_y = _TURNS[orientation]
    if swap:
        x, y, w, h, width, height = y, x, h, w, height, width
    return (width - x - w if mirror_x else x, height - y - h if mirror_y else y, w, h)


def open_picture(content: bytes) -> "Image.Image":
    """The image, its header read and its size bounded, not decoded. Raises: PictureError."""
    from PIL import Image

    formats = _heif() if is_heif(content) else _formats()
    try:
        image = Image.open(io.BytesIO(content), formats=formats)
    except Image.DecompressionBombError:
        raise PictureError(f"has more than {MAX_PIXELS:,} pixels, which is the most that is read") from None
    except Exception as error:  # of Pillow's plugins: OSError, SyntaxError, ValueError, struct.error …
        why = "" if isinstance(error, Image.UnidentifiedImageError) else f": {error}"
        raise PictureError(f"is {what_bytes_are(content)}{why}") from None
    check_size(*image.size)
    return image


def check_size(width: int, height: int) -> None:
    """Raises: PictureError: more pixels, or longer sides, than are read."""
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise PictureError(f"has {width}x{height} pixels; allowed: sides up to {MAX_SIDE}, {MAX_PIXELS:,} pixels")


def orientation_of(image: "Image.Image", content: bytes | None = None) -> int:
    """EXIF's orientation of what Pillow has opened (from `content`), 1 to 8; nonsense is 1."""
    if image.format == "TIFF" or (image.format == "PNG" and content and not any(tag in content for tag in _PNG_TAGS)):
        return 1  # Pillow turns TIFFs by itself
    try:
        with warnings.catch_warnings():  # what is corrupt turns nothing, and is nobody's concern
            warnings.simplefilter("ignore")
            value = image.getexif().get(ORIENTATION)
    except Exception:  # EXIF that is damaged: what it wanted to say, nobody knows
        return 1
    return value if type(value) is int and value in _TURNS else 1


def header_of(image: "Image.Image", content: bytes) -> Header:
    """Of what `open_picture` has opened from `content`."""
    orientation = orientation_of(image, content)
    is_plain = orientation == 1 and image.mode in ("L", "RGB") and not image.has_transparency_data
    is_plain &= image.format == "JPEG" or (image.format == "PNG" and content[24] <= 8)  # byte 24: bits of a value
    return Header(image.format or "", image.mode, image.size, orientation, is_plain)


def _upright(image: "Image.Image", orientation: int) -> "Image.Image":
    """Decoded: of mode L or RGB, turned."""
    from PIL import Image

    try:
        image.load()
        picture = of_8_bits(image)
    except PictureError:
        raise
    except Exception as error:  # what decoders raise
        raise PictureError(f"cannot be decoded: {error}") from None
    if orientation == 1:
        return picture
    return Image.fromarray(np.ascontiguousarray(turned(np.asarray(picture), orientation)))


def of_8_bits(image: "Image.Image") -> "Image.Image":
    """Mode L or RGB; 16 bits are divided by 256, what is transparent lies on white. Raises: PictureError."""
    from PIL import Image

    if image.mode in _GREY_16 or image.mode == "I":
        return _of_16_bits(image)
    if image.mode == "F":
        raise PictureError("has floating-point values, whose range nobody knows; save it with 8 bits, as PNG")
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), picture).convert("RGB")
    return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")


def _of_16_bits(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    values_HW = np.asarray(image)
    lowest, highest = int(values_HW.min()), int(values_HW.max())
    if image.mode == "I" and lowest >= 0 and highest <= 255:
        return Image.fromarray(values_HW.astype(np.uint8))
    if lowest < 0 or highest > 65535 or 0 < highest < _DARK:
        bits = "32" if image.mode == "I" else "16"
        raise PictureError(
            f"has {bits}-bit values from {lowest} to {highest}, where 0 to 65535 is black to white: on that scale it "
            "would lose what it shows; save it with 8 bits, as PNG, its values spread over 0 to 255"
        )
    return Image.fromarray((values_HW >> 8).astype(np.uint8))


def _own_quality(image: "Image.Image", orientation: int) -> dict[str, object]:
    """The quantisation of a JPEG, turned with it, and its subsampling where that can be said of the turned one."""
    from PIL import JpegImagePlugin

    swap = _TURNS[orientation][0]
    tables = getattr(image, "quantization")  # noqa: B009 (JPEGs have it)
    if any(len(table) != 64 for table in tables.values()):
        return {"quality": _QUALITY}
    kept = {number: _transposed(table) if swap else list(table) for number, table in tables.items()}
    sampling = JpegImagePlugin.get_sampling(image)
    return {"qtables": kept, "subsampling": 2 if sampling == 2 else 0 if swap or sampling != 1 else 1}


def _transposed(table: list[int]) -> list[int]:
    values: list[int] = np.reshape(table, (8, 8)).T.ravel().tolist()
    return values


@lru_cache
def _formats() -> tuple[str, ...]:
    """Those that this Pillow was built with."""
    from PIL import Image

    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _heif() -> tuple[str, ...]:
    try:
        import pillow_heif
    except ImportError:
        raise PictureError(f"is a HEIC picture; to read such, {install('heif')}, or save it as JPEG") from None
    pillow_heif.register_heif_opener()
    return ("HEIF",)
