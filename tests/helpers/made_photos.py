"""Photographs as phones and tools write them: a red box on grey, stored turned, of every mode and format."""

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco

from mres.evaluate.segmenter import read_image
from mres.records import ImageRecord
from mres.sources.mres_jsonl import mres_jsonl

GROUND, RED = (100, 110, 120), (220, 40, 40)
SIZE, BOX = (64, 48), (8, 6, 32, 22)  # of the upright picture; x1, y1, x2, y2: near no edge's mirror image
# What makes the stored image of the upright one, by EXIF orientation: the inverse of what a viewer does.
STORED = {
    1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
}  # fmt: skip


def photo(size: tuple[int, int] = SIZE) -> Image.Image:
    """The upright picture."""
    image = Image.new("RGB", size, GROUND)
    ImageDraw.Draw(image).rectangle((BOX[0], BOX[1], BOX[2] - 1, BOX[3] - 1), fill=RED)
    return image


def encoded(image: Image.Image, suffix: str, **options: Any) -> bytes:
    with io.BytesIO() as buffer:
        image.save(buffer, suffix, **options)
        return buffer.getvalue()


def turned_photo(orientation: int, suffix: str, size: tuple[int, int] = SIZE) -> bytes:
    """The photograph, stored so that `orientation` turns it upright."""
    exif, turn = Image.Exif(), STORED[orientation]
    exif[0x112] = orientation
    stored = photo(size) if turn is None else photo(size).transpose(turn)
    return encoded(stored, suffix, exif=exif, **({"quality": 95} if suffix == "JPEG" else {"lossless": True}))


def mask_of_box(size: tuple[int, int] = SIZE, orientation: int = 1) -> np.ndarray:
    """The box's mask (H, W), of the upright picture, or of the stored one that `orientation` turns upright."""
    mask = Image.new("L", size)
    mask.paste(255, BOX)
    turn = STORED[orientation]
    return np.asarray(mask if turn is None else mask.transpose(turn)) > 0


def png_of_16_bits(values_HWC: np.ndarray) -> bytes:
    """Pillow writes 16 bits of one channel only."""
    height, width, channels = values_HWC.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values_HWC)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def photo_source(folder: Path, content: bytes, mask_HW: np.ndarray, name: str = "photo.jpg", **fields: Any) -> Any:
    """A source of one record (MRES JSONL) whose annotation has the mask's size."""
    encoded_mask = coco.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
    height, width = mask_HW.shape
    target = {
        "id": "box", "granularity": "object", "category": "box", "box": coco.toBbox(encoded_mask).tolist(),
        "mask": {"size": [height, width], "counts": encoded_mask["counts"].decode()}, "expressions": ["the red box"],
        **fields,
    }  # fmt: skip
    record = {"id": "a", "image": name, "width": width, "height": height, "split": "train", "source": "x"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    (folder / "records.jsonl").write_text(json.dumps({**record, "targets": [target]}), encoding="utf-8")
    return mres_jsonl(folder / "records.jsonl", split=None)


def record_pixels(record: ImageRecord) -> np.ndarray:
    """What lies in a shard, read without a look at any tag (H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(record.image)).convert("RGB")).astype(int)


def predicted_pixels(content: bytes) -> np.ndarray:
    """What prediction sees (H, W, 3)."""
    return np.asarray(read_image(content)).astype(int)


def record_mask(record: ImageRecord) -> np.ndarray:
    return coco.decode({"size": [record.height, record.width], "counts": record.targets[0].mask.counts}) > 0
