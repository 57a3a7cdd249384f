"""What a file is that holds no weights that can be read, said by its first bytes: people get other files than they think."""

from __future__ import annotations

import re
from pathlib import Path

from mres.formats.torch_archive import open_zip, printable
from mres.io.files import open_regular

_HEAD_BYTES = 1024
_SHOWN = 60
_DOWNLOAD = "what came is not the weights: log in or accept the terms where they are published, and download them again"
_UNPACK = "unpack it, and name the file of weights in it"
_CONVERT = "convert the weights to safetensors with the library that wrote them"

# How a file begins (a pattern of bytes), what it is, what to do.
_KNOWN: tuple[tuple[bytes, str, str], ...] = (
    (rb"version https://git-lfs", "a pointer of Git LFS, not the weights themselves", "fetch them with `git lfs pull`"),
    (rb"(?i)\s*(<!--.*?-->\s*)?<(!doctype\s+html|html|head|body|script|meta|title)\b", "a web page (HTML)", _DOWNLOAD),
    (rb"\s*<(\?xml|Error>)", "an XML document, such as a store's message", _DOWNLOAD),
    (rb"\x1f\x8b", "a gzip archive", _UNPACK),
    (rb"BZh[1-9]1AY", "a bzip2 archive", _UNPACK),
    (rb"\xfd7zXZ\0", "an xz archive", _UNPACK),
    (rb"\x28\xb5\x2f\xfd", "a Zstandard archive", _UNPACK),
    (rb"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (rb"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (rb".{257}ustar", "a tar archive", _UNPACK),
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras and TensorFlow write it", _CONVERT),
    (rb".{4}TFL3", "a TensorFlow Lite model", _CONVERT),
    (rb"\x08\x01\x12", "a TensorFlow SavedModel", _CONVERT),
    (rb"\x08[\x01-\x20][\x12\x1a\x22\x28\x32\x3a\x42]", "an ONNX model", _CONVERT),
    (rb"\x93NUMPY", "a NumPy array", _CONVERT),
    (rb"GGUF|ggml|ggjt|lmgg", "a GGUF (ggml) file", _CONVERT),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|%PDF|BM.{4}\0\0\0\0", "a picture or a document", "name the file of weights"),
    (rb"\x7fELF|MZ|\xcf\xfa\xed\xfe", "a program", "name the file of weights"),
    (rb"\xde\x00|\xdf\x00|[\x81-\x8f][\xa0-\xbf\xd9]", "a msgpack file, as Flax writes it", _CONVERT),
)
_TENSORFLOW_FOOTER = bytes.fromhex("57fb808b247547db")  # of a checkpoint's .index


def foreign(path: Path) -> str | None:
    """What the file is and what to do, where it is something known that holds no tensors of torch or safetensors.

    Raises:
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        head = file.read(_HEAD_BYTES)
        size = file.seek(0, 2)
        file.seek(max(0, size - 8))
        tail = file.read(8)
    if not head:
        return "is empty (0 bytes): the download broke off before it began; download it again"
    if not head.strip(b"\0"):
        return f"begins with {len(head)} bytes of zeros, which no file of weights does: download it again"
    for pattern, what, remedy in _KNOWN:
        if re.match(pattern, head, re.DOTALL):
            return f"is {what}: {remedy}"
    if tail == _TENSORFLOW_FOOTER:
        return f"is the index of a TensorFlow checkpoint: {_CONVERT}"
    if head.startswith(b"PK"):
        return _of_zip(path)
    return _of_text(head)


def _of_zip(path: Path) -> str | None:
    """Of a zip that torch.save did not write."""
    try:
        with open_regular(path) as file, open_zip(file) as archive:
            names = archive.namelist()
    except Exception:  # a zip can fail in any way, and its reader says in which
        return None
    if any(re.fullmatch("[^/]+/data[.]pkl", name) for name in names):
        return None
    shown = printable(", ".join(names[:3])[:_SHOWN]) + (" …" if len(names) > 3 else "")
    if any(name.endswith(".npy") for name in names):
        return f"is a zip archive of NumPy arrays ({shown}): {_CONVERT}"
    if "model.weights.h5" in names:
        return f"is a Keras model: {_CONVERT}"
    return f"is a zip archive that torch did not write (it holds {shown or 'nothing'}): {_UNPACK}"


def _of_text(head: bytes) -> str | None:
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:
            return None
        text = head[: error.start].decode()
    if not all(letter.isprintable() or letter.isspace() for letter in text):
        return None
    what = "JSON" if re.match(r"\s*[{\[]\s*[\"{\[\]}]", text) else "text"
    return f"is {what}, not weights (it begins with “{printable(' '.join(text.split()))[:_SHOWN]}”): {_DOWNLOAD}"
