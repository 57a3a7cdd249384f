"""`mres.record` and `mres.write_shards`: data that Python has in hand, without annotation files in between.

Shapes: H×W the image; N points of a polygon.
"""

import hashlib
import io
import json
import sys
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mres.errors import UserError, near, shown
from mres.io.files import read_regular
from mres.pixels.picture import MAX_IMAGE_BYTES, ORIENTATION, PictureError, of_8_bits, orientation_of
from mres.pixels.upright import FRAMES, Frame, upright_record
from mres.record_json import record_to_json
from mres.records import Expression, Granularity, ImageRecord, RecordError, Rle, Target, encode_mask
from mres.shards.check import check_record
from mres.shards.manifest import Manifest
from mres.shards.writer import WriteOptions
from mres.shards.writer import write_shards as write_source
from mres.sources.coco_masks import MaskSizeError, annotation_mask, bounding_box
from mres.sources.reading import in_size_of_masks
from mres.sources.source import RecordSource

_MASKS = "a boolean array (height, width), COCO run lengths, a polygon or several, or None for nothing in the image"


def record(
    image: Any,
    masks: Mapping[str | tuple[str, ...], Any],
    *,
    id: str | None = None,
    split: str = "train",
    source: str = "python",
    category: str | Mapping[str, str] = "object",
    parts: Collection[str] = (),
    orientation: Frame = "auto",
) -> ImageRecord:
    """An image with what is said of it.

    Args:
        image: a path, encoded bytes, an array (H, W, 3) or (H, W) of uint8, or a PIL image; turned upright where it has an
            EXIF orientation.
        masks: {expression: mask}; a tuple of expressions shares one mask. A mask is a boolean array (H, W), or one of 0
            and 1, or of 0 and 255; COCO run lengths; a polygon [x, y, x, y …] or a list of them; None (or an array
            without a pixel): the expression refers to nothing in the image.
        id: of the record, unique in a set; by default the file's name without suffix, else a hash of the image.
        split, source: what the record is labelled as.
        category: of all masks, or {expression: category}.
        parts: the expressions (of tuples, the first) whose mask is a part of an object.
        orientation: what the masks were drawn on, where the image has an EXIF orientation: "upright" as it is viewed,
            "stored" as its pixels lie in the file (masks are then turned along), or "auto": arrays and run lengths of the
            size as stored are of that, all else is upright.

    What is converted, turned, clipped or assumed is in the record's `notes`, which `write_shards` counts.

    Raises:
        UserError: naming the record, the expression, what was found and what is allowed.
    """
    if orientation not in FRAMES:
        raise UserError(f"mres.record: orientation is {shown(orientation)}; {near(str(orientation), FRAMES)}")
    notes, of_masks = Counter[str](), Counter[str]()
    content, name = _encoded(image, notes)
    where = f"mres.record: {id or name!r}"
    if not isinstance(masks, Mapping) or not masks:
        raise UserError(f"{where}: masks is {type(masks).__name__}, expected {{expression: mask}} with at least one")
    texts = [key if isinstance(key, tuple) else (key,) for key in masks]
    _check_names(texts, category, parts, where)

    def annotated(height: int, width: int) -> ImageRecord:
        of_masks.clear()  # of another try, in another size
        targets = []
        for number, (said, mask) in enumerate(zip(texts, masks.values(), strict=True)):
            drawn = _mask(mask, height, width, f"{where}, {said[0]!r}", of_masks)
            kind: Granularity = "part" if said[0] in parts else "object"
            named = category if isinstance(category, str) else category.get(said[0], "object")
            targets.append(_target(str(number), kind, named, drawn, said))
        return ImageRecord(id or name, content, width, height, split, source, tuple(targets))

    annotated_record = in_size_of_masks(content, where, annotated, orientation)
    made = upright_record(annotated_record, orientation, "mres.record", notes)
    check_record(made, "mres.record")
    return replace(made, notes=tuple((notes + of_masks).elements()))


def write_shards(records: Iterable[ImageRecord], folder: str | Path, **options: Any) -> Manifest:
    """Writes records into the new shard set `folder`, which training and evaluation read as any other.

    Their notes are printed on stderr, and kept in the manifest.

    Args:
        records: of `mres.record`.
        options: `overwrite=True` replaces a set; others as of `tools/shard.py build`: images_per_shard, workers,
            max_side, quality, layout, max_bad_fraction.

    Raises:
        UserError: no record, an id twice, a folder in use, an unknown option, a full disk.
    """
    made = _options(options)
    if not isinstance(folder, str | Path):
        raise UserError(f"mres.write_shards: the folder is {type(folder).__name__}, expected a path")
    if isinstance(records, ImageRecord) or not isinstance(records, Iterable):
        raise UserError(f"mres.write_shards: records is {type(records).__name__}, expected a list of records")
    found = list(records)
    if odd := next((one for one in found if not isinstance(one, ImageRecord)), None):
        raise UserError(f"mres.write_shards: {type(odd).__name__} among the records; make them with mres.record")
    if not found:
        raise UserError("mres.write_shards: no records")
    digest = hashlib.sha256()
    for one in found:
        digest.update(json.dumps(record_to_json(one, "image")).encode() + hashlib.sha256(one.image).digest())
    description = {"format": "python", "records_sha256": digest.hexdigest()}
    source = RecordSource.of(found, description)
    source.notes.update(note for one in found for note in one.notes)
    manifest = write_source(source, Path(folder), made)
    for note, number in source.notes.items():
        print(f"note: {note}: {number}", file=sys.stderr)
    return manifest


def _options(given: Mapping[str, Any]) -> WriteOptions:
    if "orientation" in given:
        raise UserError(
            "mres.write_shards: orientation belongs to mres.record, which turns image and masks: "
            f"mres.record(…, orientation={shown(given['orientation'])})"
        )
    known = {name: name for name in WriteOptions.__dataclass_fields__ if name != "orientation"}
    if unknown := sorted(set(given) - set(known)):
        meant = near(unknown[0], {**known, "format": "layout"}, otherwise="")  # as `build` calls it
        raise UserError(f"mres.write_shards: unknown option {unknown[0]!r}; {meant or 'allowed: ' + ', '.join(known)}")
    return WriteOptions(**{name: one.item() if isinstance(one, np.generic) else one for name, one in given.items()})


def _target(id_: str, kind: Granularity, category: str, mask: Rle, texts: tuple[str, ...]) -> Target:
    expressions = tuple(map(Expression, texts))
    if mask.is_empty:
        return Target(id_, kind, "", mask, (0, 0, 0, 0), expressions, no_target=True)
    return Target(id_, kind, category, mask, bounding_box(mask), expressions)


def _encoded(image: Any, notes: "Counter[str]") -> tuple[bytes, str]:
    """Its bytes and what it is called."""
    from PIL import Image

    if isinstance(image, str | Path):
        try:
            return read_regular(Path(image), MAX_IMAGE_BYTES), Path(image).stem
        except OSError as error:
            raise UserError(f"mres.record: the image '{image}' cannot be read: {error.strerror}") from None
    if isinstance(image, bytes | bytearray):
        return bytes(image), hashlib.sha256(image).hexdigest()[:16]
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or not image.size or image.shape[2:] not in ((), (3,)):
            raise UserError(f"mres.record: an image of {image.dtype} {image.shape}, expected uint8 (H, W, 3) or (H, W)")
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise UserError(
            f"mres.record: the image is {type(image).__name__}, expected a path, bytes, an array or a PIL image"
        )
    exif = Image.Exif()
    exif[ORIENTATION] = orientation_of(image)
    try:
        with io.BytesIO() as buffer:
            of_8_bits(image).save(buffer, "PNG", exif=exif)
            content = buffer.getvalue()
    except PictureError as error:
        raise UserError(f"mres.record: the image {error}") from None
    if image.mode not in ("L", "RGB") or image.has_transparency_data:
        notes[f"PIL images of the mode {image.mode}, stored with 8 bits, grey or RGB"] += 1
    return _encoded(content, notes)


def _check_names(texts: list[tuple[str, ...]], category: Any, parts: Collection[str], where: str) -> None:
    """What is said of expressions must be said of some."""
    firsts = [said[0] if said else "" for said in texts]
    if any(not said or not all(isinstance(text, str) for text in said) for said in texts):
        raise UserError(f"{where}: masks has a key without a text; expected a text or a tuple of texts")
    parts = [parts] if isinstance(parts, str) else parts
    if not isinstance(parts, Collection) or not isinstance(category, str | Mapping):
        name, kind = ("parts", parts) if not isinstance(parts, Collection) else ("category", category)
        allowed = "texts" if name == "parts" else "a text or {expression: category}"
        raise UserError(f"{where}: {name} is {shown(kind)}, expected {allowed}")
    for name, given in (("parts", parts), ("category", () if isinstance(category, str) else category)):
        if unknown := next((text for text in given if text not in firsts), None):
            raise UserError(f"{where}: {name} names {unknown!r}, which no mask has; {near(unknown, firsts)}")


def _mask(mask: Any, height: int, width: int, where: str, of_masks: "Counter[str]") -> Rle:
    nothing = encode_mask(np.zeros((height, width), bool))
    if mask is None:
        return nothing
    if isinstance(mask, list | tuple | dict | Rle):
        notes = Counter[str]()
        drawn = annotation_mask(_as_json(mask), height, width, where, notes)
        of_masks.update(notes)
        for note, number in notes.items():
            warnings.warn(f"{where}: {note}: {number}", stacklevel=5)
        if drawn is None and not isinstance(mask, dict | Rle):
            raise RecordError(f"{where}: its polygons cover no pixel; None says that the expression refers to nothing")
        return drawn or nothing
    mask_HW = np.asarray(mask)
    if mask_HW.shape != (height, width) or mask_HW.dtype.kind not in "bui":
        kind = RecordError if mask_HW.shape == (height, width) else MaskSizeError
        found = f"{type(mask).__name__} of {mask_HW.dtype} {mask_HW.shape}"
        raise kind(f"{where}: the mask is {found}; expected {_MASKS}; the image is ({height}, {width})")
    values = np.unique(mask_HW)
    if not set(values.tolist()) <= {0, 1} and not set(values.tolist()) <= {0, 255}:
        raise RecordError(
            f"{where}: the mask has the values {values[:5].tolist()} …; expected booleans, 0 and 1 or 0 and 255"
        )
    return encode_mask(mask_HW > 0)


def _as_json(mask: Any) -> Any:
    """Polygons and run lengths as COCO's JSON has them: lists of plain numbers, text."""
    if isinstance(mask, Rle):
        return mask.to_json()
    if isinstance(mask, dict):
        counts = mask.get("counts")
        counts = counts.decode("ascii", "replace") if isinstance(counts, bytes) else counts
        size = mask.get("size")
        return {
            **mask,
            "size": np.asarray(size).tolist() if isinstance(size, tuple | np.ndarray) else size,
            "counts": counts,
        }
    plain = [one.tolist() if isinstance(one, np.ndarray | np.generic) else one for one in mask]
    return [plain] if plain and isinstance(plain[0], int | float) else plain
