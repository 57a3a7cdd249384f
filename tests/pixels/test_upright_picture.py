"""What bytes become: every mode and format scaled rightly or refused by name, bounded before a pixel is made."""

import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from made_photos import (
    BOX,
    RED,
    SIZE,
    encoded,
    mask_of_box,
    photo,
    photo_source,
    png_chunk,
    png_of_16_bits,
    predicted_pixels,
    record_pixels,
)
from PIL import Image

from mres.errors import UserError
from mres.evaluate.segmenter import read_image
from mres.pixels.picture import PictureError, read_header, upright_picture
from mres.records import RecordError

RGB = np.asarray(photo())
GREY = np.asarray(photo().convert("L"))
GREY_16 = GREY.astype(np.uint16) * 257
ALPHA = np.where(mask_of_box(), 255, 0).astype(np.uint8)
ON_WHITE = np.where(mask_of_box()[..., None], RGB, 255)


def palette_with_transparency() -> bytes:
    image = photo().quantize(4)
    ground = image.getpixel((0, 0))
    return encoded(image, "PNG", transparency=ground)


def cmyk(image: Image.Image) -> bytes:
    return encoded(image.convert("CMYK"), "JPEG", quality=100, subsampling=0)


KINDS = {  # the bytes, the picture that is meant, how far a pixel may be off
    "16-bit grey PNG": (encoded(Image.fromarray(GREY_16), "PNG"), GREY, 0),
    "16-bit grey TIFF": (encoded(Image.fromarray(GREY_16), "TIFF"), GREY, 0),
    "32-bit grey TIFF": (encoded(Image.fromarray(GREY_16.astype(np.int32)), "TIFF"), GREY, 0),
    "16-bit RGB PNG": (png_of_16_bits(RGB.astype(np.uint16) * 257), RGB, 0),
    "16-bit RGBA PNG": (png_of_16_bits(np.dstack([RGB, ALPHA]).astype(np.uint16) * 257), ON_WHITE, 0),
    "RGBA": (encoded(Image.fromarray(np.dstack([RGB, ALPHA])), "PNG"), ON_WHITE, 0),
    "LA": (encoded(Image.fromarray(np.dstack([GREY, ALPHA]), "LA"), "PNG"), np.where(mask_of_box(), GREY, 255), 0),
    "palette": (encoded(photo().quantize(4), "PNG"), RGB, 2),
    "palette, transparent": (palette_with_transparency(), ON_WHITE, 2),
    "1 bit": (encoded(Image.fromarray(mask_of_box()), "PNG"), ALPHA, 0),
    "CMYK": (cmyk(photo()), RGB, 6),
    "MPO": (encoded(photo(), "MPO", save_all=True, append_images=[photo().resize((32, 24))], quality=95), RGB, 8),
    "WebP": (encoded(photo(), "WEBP", lossless=True), RGB, 0),
    "BMP": (encoded(photo(), "BMP"), RGB, 0),
    "GIF": (encoded(photo(), "GIF", save_all=True, append_images=[Image.new("RGB", SIZE)]), RGB, 2),
    "TIFF": (encoded(photo(), "TIFF", compression="tiff_lzw"), RGB, 0),
    "AVIF": (encoded(photo(), "AVIF", quality=95), RGB, 12),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_trained_on_and_predicted_as_it_looks(kind: str, tmp_path: Path) -> None:
    content, meant, tolerance = KINDS[kind]
    meant_HW3 = np.broadcast_to(meant if meant.ndim == 3 else meant[..., None], (*SIZE[::-1], 3)).astype(int)
    source = photo_source(tmp_path, content, mask_of_box())
    record = source.make(0)
    assert read_header(record.image).is_plain
    assert sum(source.notes.values()) == 1
    inner = np.s_[BOX[1] + 3 : BOX[3] - 3, BOX[0] + 3 : BOX[2] - 3]  # JPEG's edges aside
    for pixels in (record_pixels(record), predicted_pixels(content)):
        assert np.abs(pixels - meant_HW3)[inner].max() <= tolerance
        assert np.median(np.abs(pixels - meant_HW3)) <= tolerance
    assert np.abs(record_pixels(record) - predicted_pixels(content)).mean() < 2


REFUSED = {
    "float": (encoded(Image.fromarray(GREY.astype(np.float32) / 255), "TIFF"), "floating-point"),
    "12 bits in 16": (
        encoded(Image.fromarray(GREY.astype(np.uint16) * 16), "PNG"),
        r"16-bit values from \d+ to \d{4},",
    ),
    "8 bits in 16": (encoded(Image.fromarray(GREY.astype(np.uint16)), "PNG"), r"16-bit values from \d+ to \d{2,3},"),
    "negative": (encoded(Image.fromarray(GREY.astype(np.int32) - 1000), "TIFF"), "32-bit values from -"),
    "empty": (b"", r"is empty \(0 bytes\)"),
    "zeros": (b"\0" * 5000, "is 5,000 zero bytes"),
    "web page": (b"\n <!DOCTYPE html><html>404</html>", "an HTML page"),
    "PDF": (b"%PDF-1.7 ...", "a PDF"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG"),
    "video": (b"\0\0\0\x20ftypisom" + bytes(50), "a video"),
    "ZIP": (b"PK\3\4" + bytes(40), "a ZIP archive"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    "JSON": (b'{"error": "denied"}', "a JSON text"),
    "text": (b"no image", "a text"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n", "PostScript"),
    "cut PNG header": (encoded(photo(), "PNG")[:20], "damaged or cut off PNG"),
    "cut JPEG": (encoded(photo(), "JPEG")[:-60], "truncated"),
    "long side": (encoded(Image.new("1", (20_001, 1)), "PNG"), "has 20001x1 pixels"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_gives_no_picture_is_named_in_build_and_prediction(kind: str, tmp_path: Path) -> None:
    from mres.shards.check import check_record

    content, message = REFUSED[kind]
    (tmp_path / "given.jpg").write_bytes(content)
    with pytest.raises(RecordError, match=message) as built:
        check_record(photo_source(tmp_path, content, mask_of_box(), "given.jpg").make(0), "here")
    with pytest.raises(UserError, match=message) as asked:
        read_image(tmp_path / "given.jpg")
    for said in (str(built.value), str(asked.value)):
        assert "0x" not in said.replace("0x0", "")
        assert "BytesIO" not in said
        assert "given.jpg" in said or "record 'a'" in said


def bomb(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG that says it has so many pixels, with hardly a byte of them."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    every = (header, *chunks, (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in every)


@pytest.mark.parametrize("size", [(50_000, 50_000), (20_000, 20_000), (2**31 - 1, 1), (13_500, 13_500)])
def test_pixels_are_bounded_before_one_is_made(size: tuple[int, int]) -> None:
    for given in (bomb(*size), encoded(photo(), "JPEG").replace(b"\0\x30\0\x40", struct.pack(">HH", 50_000, 50_000))):
        with pytest.raises(PictureError, match="pixels"):
            upright_picture(given)


@pytest.mark.parametrize("name", [b"zTXt", b"iCCP"])
def test_compressed_chunks_do_not_become_gigabytes(name: bytes) -> None:
    with pytest.raises(PictureError, match="damaged"):
        upright_picture(bomb(8, 6, (name, b"k\0\0" + zlib.compress(b"A" * 80_000_000))))


def test_broken_exif_turns_nothing(tmp_path: Path) -> None:
    blocks = (
        b"nothing of the kind",
        b"Exif\0\0MM\0\x2a\0\0\0\x08\xff\xff\x01\x12",
        b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04abc\0\0\0\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\0\0\x08\0\0\0",
    )
    for block in blocks:
        for suffix in ("JPEG", "PNG"):
            content = encoded(photo(), suffix, exif=block)
            assert photo_source(tmp_path, content, mask_of_box()).make(0).image == content
            assert np.abs(predicted_pixels(content) - RGB).mean() < 3
    for value in (0, 9, 65_535):
        exif = Image.Exif()
        exif[0x112] = value
        assert read_header(encoded(photo(), "JPEG", exif=exif)).orientation == 1


def test_xmp_turns_as_exif_does() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    assert read_header(encoded(photo(), "JPEG", xmp=xmp)).upright_size == SIZE[::-1]


def test_what_is_no_file_of_bytes_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(UserError, match="cannot be read as an image: it is a"):
            read_image(path)
    source = photo_source(tmp_path / "built", b"", mask_of_box())
    (tmp_path / "built/photo.jpg").unlink()
    (tmp_path / "built/photo.jpg").symlink_to("/dev/zero")
    with pytest.raises(RecordError, match=r"photo.jpg' cannot be read: it is a device"):
        source.make(0)


def test_heic_is_read_where_the_library_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="the extra heif is not installed")
    pillow_heif.from_pillow(photo()).save(tmp_path / "photo.heic", quality=95)
    content = (tmp_path / "photo.heic").read_bytes()
    record = photo_source(tmp_path, content, mask_of_box()).make(0)
    assert np.abs(record_pixels(record) - RGB).mean() < 4
    assert np.abs(predicted_pixels(content) - RGB).mean() < 4
    assert tuple(record_pixels(record)[12, 20] // 16) == tuple(np.array(RED) // 16)


def test_heic_is_named_where_it_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    content = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 100
    source = photo_source(tmp_path, content, mask_of_box(), "IMG_1.jpg")
    with pytest.raises(RecordError, match=r"IMG_1.jpg' is a HEIC picture; .*pip install .*\[heif\]"):
        source.make(0)
