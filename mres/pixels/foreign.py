"""What bytes are that should have been a picture: for people, with what to do about it."""

_HEIF = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_PICTURES = (  # of formats that are read: what begins so and is not read is damaged
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
)
_OTHERS = (
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture; save it as JPEG or PNG"),
    (b"\xff\x0a", "a JPEG XL picture; save it as JPEG or PNG"),
    (b"8BPS", "a Photoshop document; save it as JPEG or PNG"),
    (b"%PDF", "a PDF; save its pictures as JPEG or PNG"),
    (b"%!PS", "a PostScript document; save it as JPEG or PNG"),
    (b"PK\3\4", "a ZIP archive; unpack it"),
    (b"\x1f\x8b", "a gzip file; unpack it"),
    (b"\x93NUMPY", "an array of NumPy; save it as PNG"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the picture itself; fetch it with `git lfs pull`"),
)
_TEXTS = (  # in small letters, after blanks
    (b"<!doctype html", "an HTML page, such as a download that failed answers with; download the picture again"),
    (b"<html", "an HTML page, such as a download that failed answers with; download the picture again"),
    (b"<svg", "an SVG drawing; save it as PNG"),
    (b"<?xml", "an XML text"),
    (b"{", "a JSON text"),
    (b"[", "a JSON text"),
)


def what_bytes_are(content: bytes) -> str:
    """Such as "an HTML page …" or "a damaged or cut off PNG (312 bytes)": what follows "the image is"."""
    if not any(content):
        return f"{len(content):,} zero bytes; copy or download it again" if content else "empty (0 bytes)"
    if name := _picture(content):
        return f"a damaged or cut off {name} ({len(content):,} bytes)"
    if content[4:8] == b"ftyp":
        return "a video; save a picture of it as JPEG"
    head = content[:1024].removeprefix(b"\xef\xbb\xbf").strip().lower()
    for start, name in _OTHERS:
        if content.startswith(start):
            return name
    for start, name in _TEXTS:
        if head.startswith(start):
            return name
    text = content[:40].decode("utf-8", "replace")
    return f"a text ({text!r})" if text.isprintable() else "of no format of pictures that is known"


def is_heif(content: bytes) -> bool:
    return content[4:8] == b"ftyp" and content[8:12] in _HEIF


def _picture(content: bytes) -> str | None:
    """The format of pictures that the bytes begin as."""
    if is_heif(content):
        return "HEIC picture"
    if content[4:8] == b"ftyp" and content[8:11] == b"avi":
        return "AVIF picture"
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "WebP picture"
    return next((name for start, name in _PICTURES if content.startswith(start)), None)
