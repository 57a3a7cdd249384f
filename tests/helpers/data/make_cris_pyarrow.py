"""Makes cris_pyarrow.zip: genuine values of `pyarrow.serialize`, as CRIS's tools/folder2lmdb.py wrote them.

    python3.11 -m venv /tmp/legacy
    /tmp/legacy/bin/pip install 'pyarrow==11.0.0' 'numpy<2' pillow      # the last release that has pyarrow.serialize
    /tmp/legacy/bin/python tests/helpers/data/make_cris_pyarrow.py

The members `lmdb/<key>` are the content of an LMDB; `plain/…` and `refused/…` are single values.
"""

import io
import zipfile
from pathlib import Path

import numpy as np
import pyarrow
from PIL import Image

SIZE = (12, 8)
PLAIN = {
    "nested": {"a": {"b": [1, [-2, ["x", (True, 2.5)], None]]}, "empty": [], "none": {}},
    "keys": [str(number).encode() for number in range(300)],
    "text": "Größe",
    "long": 2**62,
    "bytes": bytes(5000),
}


class Custom:
    """Pickled inside of the value, where its class allows it."""


def picture(form: str, box: tuple[int, int, int, int], colour: int) -> bytes:
    image = Image.new("L" if form == "PNG" else "RGB", SIZE, 0)
    image.paste(colour if form == "PNG" else (colour, 40, 40), box)
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def value(number: int, name: str, colour: int, box: tuple[int, int, int, int], sents: list[str]) -> dict[str, object]:
    return {
        "img": picture("JPEG", (0, 0, *SIZE), colour),
        "mask": picture("PNG", box, 255),
        "cat": 16,
        "seg_id": 100 + number,
        "img_name": f"COCO_train2014_{name:0>12}.jpg",
        "num_sents": len(sents),
        "sents": sents,
    }


def main() -> None:
    values = [
        value(0, "9", 200, (1, 1, 5, 4), ["left dog", "the dog’s bed"]),
        value(1, "25", 90, (0, 0, 12, 8), ["everything"]),
        value(2, "9", 200, (6, 2, 11, 8), ["right dog"]),
    ]
    context = pyarrow.SerializationContext()
    context.register_type(Custom, "Custom", pickle=True)
    refused = {"array": {"a": np.arange(3)}, "set": {1, 2}, "buffer": pyarrow.py_buffer(b"x"), "half": np.float16(1)}
    members = {
        **{f"lmdb/{number}": pyarrow.serialize(found) for number, found in enumerate(values)},
        "lmdb/__keys__": pyarrow.serialize([str(number).encode() for number in range(len(values))]),
        "lmdb/__len__": pyarrow.serialize(len(values)),
        **{f"plain/{name}": pyarrow.serialize(found) for name, found in PLAIN.items()},
        **{f"refused/{name}": pyarrow.serialize(found) for name, found in refused.items()},
        "refused/pickle": pyarrow.serialize({"a": Custom()}, context=context),
        "refused/integer": pyarrow.serialize(2**70),
    }
    path = Path(__file__).with_name("cris_pyarrow.zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, found in members.items():
            archive.writestr(zipfile.ZipInfo(name), found.to_buffer().to_pybytes(), zipfile.ZIP_DEFLATED)


if __name__ == "__main__":
    main()
