"""CRIS data in their genuine form: JSON with mask files, and LMDBs. Images are 12 x 8 pixels, masks rectangles."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from mres.records import Rle

WIDTH, HEIGHT = 12, 8
GENUINE = Path(__file__).with_name("data") / "cris_pyarrow.zip"

Box = tuple[int, int, int, int]  # x1, y1, x2, y2


def png(box: Box | None, brightness: int = 255, size: tuple[int, int] = (WIDTH, HEIGHT), mode: str = "L") -> bytes:
    """A mask: 0 everywhere, `brightness` in the box."""
    image = Image.new("L", size, 0)
    if box is not None:
        image.paste(brightness, box)
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(colour: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (colour, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def pixels(mask: Rle) -> np.ndarray:
    return coco.decode({"size": [mask.height, mask.width], "counts": mask.counts})


def rectangle(box: Box) -> np.ndarray:
    mask_HW = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask_HW[box[1] : box[3], box[0] : box[2]] = 1
    return mask_HW


def entry(segment: Any, image: str, *sentences: str, box: Box = (1, 1, 5, 4), **fields: Any) -> dict[str, Any]:
    """An entry of CRIS's JSON, as tools/data_process.py writes it."""
    listed = [{"idx": i, "sent_id": i, "sent": text} for i, text in enumerate(sentences)]
    value = {"bbox": list(box), "cat": 16, "segment_id": segment, "img_name": image}
    return {**value, "sentences": listed, "sentences_num": len(listed), **fields}


def write_pictures(images: Path, masks: Path, entries: list[dict[str, Any]]) -> None:
    """The images and masks of entries; masks fill their `bbox`."""
    for folder in (images, masks):
        folder.mkdir(parents=True, exist_ok=True)
    for value in entries:
        path = images / value["img_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg())
        (masks / f"{value['segment_id']}.png").write_bytes(png(tuple(value["bbox"])))


def write_cris(root: Path, entries: list[dict[str, Any]], file: str = "refcoco/val.json") -> dict[str, Path]:
    """anns/, masks/ and images/ of a data set; returns `cris`'s arguments."""
    annotations, masks, images = root / "anns" / file, root / "masks" / Path(file).parent, root / "images/train2014"
    annotations.parent.mkdir(parents=True, exist_ok=True)
    annotations.write_text(json.dumps(entries))
    write_pictures(images, masks, entries)
    return {"annotations": annotations, "masks": masks, "images": images}


def value(image: str, segment: int | str, *sents: str, box: Box = (1, 1, 5, 4), **fields: Any) -> dict[str, Any]:
    """A value of CRIS's LMDB, before it is serialised."""
    found = {"img": jpeg(), "mask": png(box), "cat": 16, "seg_id": segment, "img_name": image}
    return {**found, "num_sents": len(sents), "sents": list(sents), **fields}


def write_lmdb(path: Path, contents: dict[str, bytes], *, subdir: bool = False) -> Path:
    import lmdb

    path.parent.mkdir(parents=True, exist_ok=True)
    with lmdb.open(str(path), subdir=subdir, map_size=1 << 24) as environment, environment.begin(write=True) as writing:
        for key, content in contents.items():
            writing.put(key.encode(), content)
    return path


def genuine(folder: str) -> dict[str, bytes]:
    """{name: bytes} of one folder of what `data/make_cris_pyarrow.py` had pyarrow.serialize write."""
    with zipfile.ZipFile(GENUINE) as archive:
        names = [name for name in archive.namelist() if name.startswith(f"{folder}/")]
        return {name.partition("/")[2]: archive.read(name) for name in names}
