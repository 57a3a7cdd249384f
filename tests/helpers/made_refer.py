"""Files of refs and of instances in the genuine forms of REFER and gRefCOCO, and pickles as Python 2 wrote them."""

import json
import struct
from pathlib import Path
from typing import Any

from made_coco import HEIGHT, WIDTH
from PIL import Image

# Objects of two images: (category id, image id, rectangle as x, y, width, height).
PERSON, DOG = 1, 18
_CATEGORIES = [
    {"id": PERSON, "name": "person", "supercategory": "person"},
    {"id": DOG, "name": "dog", "supercategory": "animal"},
]


class Long(int):
    """Python 2's `long`."""


class Unicode(str):
    """Python 2's `unicode`; other texts are its `str`."""

    __slots__ = ()


class Python2Pickler:
    """What `pickle.dumps(value, protocol)` of Python 2 gave for plain values."""

    def __init__(self, protocol: int) -> None:
        self.protocol = protocol
        self.memoized = 0

    def dumps(self, value: Any) -> bytes:
        return (b"\x80\x02" if self.protocol == 2 else b"") + self._write(value) + b"."

    def _write(self, value: Any) -> bytes:
        for kind, write in (
            (type(None), lambda _: b"N"),
            (bool, self._bool),
            (Long, self._long),
            (int, self._int),
            (float, lambda v: b"F%r\n" % v if self.protocol == 0 else b"G" + struct.pack(">d", v)),
            (Unicode, self._unicode),
            (str, self._str),
            (list, self._list),
            (dict, self._dict),
            (tuple, self._tuple),
        ):
            if isinstance(value, kind):
                return write(value)
        raise TypeError(type(value))

    def _put(self) -> bytes:
        number, self.memoized = self.memoized, self.memoized + 1
        if self.protocol == 0:
            return b"p%d\n" % number
        return b"q" + bytes([number]) if number < 256 else b"r" + struct.pack("<I", number)

    def _bool(self, value: bool) -> bytes:
        if self.protocol < 2:
            return b"I01\n" if value else b"I00\n"
        return b"\x88" if value else b"\x89"

    def _int(self, value: int) -> bytes:
        if self.protocol == 0 or not -(2**31) <= value < 2**31:
            return b"I%d\n" % value
        if 0 <= value < 256:
            return b"K" + bytes([value])
        return b"M" + struct.pack("<H", value) if 0 <= value < 2**16 else b"J" + struct.pack("<i", value)

    def _long(self, value: int) -> bytes:
        if self.protocol < 2:
            return b"L%dL\n" % value
        content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True) if value else b""
        return b"\x8a" + bytes([len(content)]) + content

    def _str(self, value: str) -> bytes:
        content = value.encode("latin-1")
        if self.protocol == 0:
            return b"S" + repr(content)[1:].encode() + b"\n" + self._put()
        length = b"U" + bytes([len(content)]) if len(content) < 256 else b"T" + struct.pack("<i", len(content))
        return length + content + self._put()

    def _unicode(self, value: str) -> bytes:
        if self.protocol == 0:
            escaped = value.replace("\\", "\\u005c").replace("\n", "\\u000a").encode("raw-unicode-escape")
            return b"V" + escaped + b"\n" + self._put()
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode() + self._put()

    def _list(self, value: list[Any]) -> bytes:
        if self.protocol == 0:
            return b"(l" + self._put() + b"".join(self._write(item) + b"a" for item in value)
        return b"]" + self._put() + (b"(" + b"".join(map(self._write, value)) + b"e" if value else b"")

    def _dict(self, value: dict[Any, Any]) -> bytes:
        if self.protocol == 0:
            return b"(d" + self._put() + b"".join(self._write(k) + self._write(v) + b"s" for k, v in value.items())
        pairs = b"".join(self._write(k) + self._write(v) for k, v in value.items())
        return b"}" + self._put() + (b"(" + pairs + b"u" if value else b"")

    def _tuple(self, value: tuple[Any, ...]) -> bytes:
        items = b"".join(map(self._write, value))
        if self.protocol < 2 or len(value) > 3:
            return b"(" + items + b"t" + self._put()
        return items + bytes([0x84 + len(value)]) + self._put() if value else b")"


def rectangle(x: int, y: int, width: int, height: int) -> list[list[float]]:
    """A segmentation of one polygon."""
    return [[float(v) for v in (x, y, x + width, y, x + width, y + height, x, y + height)]]


def annotation(id_: int, image_id: int, segmentation: Any, category: int = PERSON, iscrowd: int = 0) -> dict[str, Any]:
    return {
        "id": id_,
        "image_id": image_id,
        "category_id": category,
        "segmentation": segmentation,
        "bbox": [1.0, 1.0, 2.0, 2.0],
        "area": 4.0,
        "iscrowd": iscrowd,
    }


def ref(ref_id: int, annotation_ids: Any, image_id: int, split: str, *texts: str, **fields: Any) -> dict[str, Any]:
    """A ref; its cleaned texts are `texts`, the raw ones have a capital and a full stop."""
    sentences = [
        {"tokens": text.split(), "raw": f"{text.capitalize()}.", "sent_id": 100 * ref_id + n, "sent": text}
        for n, text in enumerate(texts)
    ]
    return {
        "sent_ids": [sentence["sent_id"] for sentence in sentences],
        "file_name": f"COCO_train2014_{image_id:012d}_{annotation_ids}.jpg",
        "ann_id": annotation_ids,
        "ref_id": ref_id,
        "image_id": image_id,
        "split": split,
        "sentences": sentences,
        "category_id": PERSON,
        **fields,
    }


def image_name(image_id: int) -> str:
    return f"COCO_train2014_{image_id:012d}.jpg"


def write_data(
    folder: Path, refs_name: str, refs: Any, annotations: list[dict[str, Any]], protocol: int = 0, **fields: Any
) -> None:
    """The refs (as Python 2's pickle, or as JSON) and instances.json in `folder`, the images beside its folder.

    The images are those of the annotations.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(refs).encode() if refs_name.endswith(".json") else Python2Pickler(protocol).dumps(refs)
    (folder / refs_name).write_bytes(content)
    image_ids = sorted({entry["image_id"] for entry in annotations}, reverse=True)
    images = [{"id": i, "file_name": image_name(i), "width": WIDTH, "height": HEIGHT, "license": 1} for i in image_ids]
    instances = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": _CATEGORIES}
    (folder / "instances.json").write_text(json.dumps({**instances, **fields}))
    (folder.parent / "train2014").mkdir(exist_ok=True)
    for image_id in image_ids:
        Image.new("RGB", (WIDTH, HEIGHT), (image_id, 0, 0)).save(folder.parent / "train2014" / image_name(image_id))
