"""The image record, the unit of storage, streaming and batching, and its checked JSON form (MRES JSONL).

One record is one image with all its targets; one target is one mask with all its expressions. The image encoder never
sees the text, so an image is read, decoded and encoded once for all of its expressions.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mres import rle
from mres.errors import UserError, near

Granularity = Literal["object", "part"]
GRANULARITIES: tuple[Granularity, ...] = ("object", "part")
MAX_SIDE = 20_000
MAX_TARGETS = 10_000
MAX_EXPRESSION_CHARACTERS = 2_000


class RecordError(UserError):
    """A record that breaks the format; the message names the record, the field, what was found and what is allowed."""


@dataclass(frozen=True, slots=True)
class Expression:
    """A referring expression; `kind` says how it refers ("category", "colour", "position" …), "" where unknown."""

    text: str
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Rle:
    """A binary mask as COCO run-length encoding: column-major, first run zeros, `counts` in COCO's compressed form."""

    height: int
    width: int
    counts: bytes

    def to_json(self) -> dict[str, Any]:
        return {"size": [self.height, self.width], "counts": self.counts.decode("ascii")}


def decode_masks(masks: Sequence[Rle]) -> np.ndarray:
    """Binary masks of one size as masks_KHW, uint8 0/1.

    Raises:
        ValueError: run lengths that are damaged or do not cover the image.
    """
    return rle.decode_masks([mask.counts for mask in masks], masks[0].height, masks[0].width)


def encode_mask(mask_HW: np.ndarray) -> Rle:
    """COCO run-length encoding of a binary mask."""
    from pycocotools import mask as coco_mask

    encoded = coco_mask.encode(np.asfortranarray(mask_HW, dtype=np.uint8))
    return Rle(mask_HW.shape[0], mask_HW.shape[1], encoded["counts"])


@dataclass(frozen=True, slots=True)
class Target:
    """One mask of an image with the expressions that refer to it.

    `box` is (x, y, width, height) in pixels of the original image; `parent` is the id of the object a part belongs to.
    """

    id: str
    granularity: Granularity
    category: str
    mask: Rle
    box: tuple[float, float, float, float]
    expressions: tuple[Expression, ...]
    parent: str | None = None


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image (its encoded bytes, JPEG or PNG) and its targets."""

    id: str
    image: bytes
    width: int
    height: int
    split: str
    source: str
    targets: tuple[Target, ...]

    @property
    def num_expressions(self) -> int:
        return sum(len(target.expressions) for target in self.targets)

    def pairs(self) -> Iterator[tuple[Target, int]]:
        """Every (target, index of expression) of the record, in its fixed order."""
        for target in self.targets:
            for index in range(len(target.expressions)):
                yield target, index


def expression_id(record: ImageRecord, target: Target, index: int) -> str:
    """The id of one expression in traces and results, unique in a data set: "image/target/index"."""
    return f"{record.id}/{target.id}/{index}"


def record_to_json(record: ImageRecord, image: str) -> dict[str, Any]:
    """The MRES JSONL object of `record`; `image` is the path under which its bytes are found."""
    return {
        "id": record.id,
        "image": image,
        "width": record.width,
        "height": record.height,
        "split": record.split,
        "source": record.source,
        "targets": [_target_to_json(target) for target in record.targets],
    }


def _target_to_json(target: Target) -> dict[str, Any]:
    return {
        "id": target.id,
        "granularity": target.granularity,
        "category": target.category,
        "parent": target.parent,
        "box": list(target.box),
        "mask": target.mask.to_json(),
        "expressions": [{"text": e.text, "kind": e.kind} for e in target.expressions],
    }


def record_from_json(value: Mapping[str, Any], image: bytes, where: str) -> ImageRecord:
    """The record of one MRES JSONL object, every field checked.

    Args:
        value: the parsed JSON object.
        image: the encoded bytes of its image.
        where: file and line (or shard and key) for messages.

    Raises:
        RecordError: naming `where`, the record, the field, what was found and what is allowed.
    """
    return _Reader(where).record(value, image)


def record_as_written(value: Any, image: bytes, where: str) -> ImageRecord:
    """The record of a JSON object that `record_to_json` made of a checked record: its fields are not checked again.

    For bytes that a checksum has shown to be those that were written; thirty targets then cost microseconds, not
    milliseconds.

    Raises:
        RecordError: naming `where`, if it is none after all.
    """
    try:
        targets = tuple(
            Target(
                target["id"],
                target["granularity"],
                target["category"],
                _mask_as_written(target["mask"]),
                tuple(target["box"]),
                tuple([Expression(e["text"], e["kind"]) for e in target["expressions"]]),
                target["parent"],
            )
            for target in value["targets"]
        )
        size = value["width"], value["height"]
        return ImageRecord(value["id"], image, *size, value["split"], value["source"], targets)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RecordError(f"{where}: not a record of this version of mres ({error!r}); build the set again") from None


def _mask_as_written(mask: Any) -> Rle:
    height, width = mask["size"]
    return Rle(height, width, mask["counts"].encode("ascii"))


class _Reader:
    """Checks one record; `self.where` grows as it goes down so that every message names its place."""

    def __init__(self, where: str) -> None:
        self.where = where

    def record(self, value: Mapping[str, Any], image: bytes) -> ImageRecord:
        self._known(value, {"id", "image", "width", "height", "split", "source", "targets"})
        record_id = self._text(value, "id")
        self.where = f"{self.where}: record {record_id!r}"
        width, height = self._side(value, "width"), self._side(value, "height")
        targets = value.get("targets")
        if not isinstance(targets, list) or not targets:
            raise self._error("targets", targets, "a list of at least one target")
        if len(targets) > MAX_TARGETS:
            raise self._error("targets", f"{len(targets)} targets", f"at most {MAX_TARGETS}")
        record = ImageRecord(
            id=record_id,
            image=image,
            width=width,
            height=height,
            split=self._text(value, "split"),
            source=self._text(value, "source"),
            targets=tuple(_Reader(self.where).target(t, i, width, height) for i, t in enumerate(targets)),
        )
        self._check_ids(record)
        self._check_runs(record)
        return record

    def target(self, value: Any, position: int, width: int, height: int) -> Target:
        if not isinstance(value, Mapping):
            raise self._error(f"targets[{position}]", value, "a JSON object")
        self._known(value, {"id", "granularity", "category", "parent", "box", "mask", "expressions"})
        target_id = self._text(value, "id")
        self.where = f"{self.where}, target {target_id!r}"
        granularity = value.get("granularity")
        if granularity not in GRANULARITIES:
            raise self._error("granularity", granularity, f"one of {', '.join(GRANULARITIES)}")
        parent = value.get("parent")
        if parent is not None and not isinstance(parent, str):
            raise self._error("parent", parent, "the id of a target of the same record, or null")
        return Target(
            id=target_id,
            granularity=granularity,
            category=self._text(value, "category"),
            mask=self._mask(value.get("mask"), width, height),
            box=self._box(value.get("box")),
            expressions=self._expressions(value.get("expressions")),
            parent=parent,
        )

    def _mask(self, value: Any, width: int, height: int) -> Rle:
        if not isinstance(value, Mapping) or not isinstance(value.get("counts"), str):
            raise self._error("mask", value, 'a COCO RLE {"size": [height, width], "counts": "…"}')
        if value.get("size") != [height, width]:
            raise self._error("mask.size", value.get("size"), f"the image's size, [{height}, {width}]")
        try:
            return Rle(height, width, value["counts"].encode("ascii"))
        except UnicodeEncodeError as error:
            raise self._error("mask.counts", str(error), "COCO's compressed run lengths") from None

    def _box(self, value: Any) -> tuple[float, float, float, float]:
        if isinstance(value, list) and len(value) == 4 and all(map(_is_finite, value)):
            return (float(value[0]), float(value[1]), float(value[2]), float(value[3]))
        raise self._error("box", value, "[x, y, width, height] in pixels")

    def _expressions(self, value: Any) -> tuple[Expression, ...]:
        if not isinstance(value, list) or not value:
            raise self._error("expressions", value, "a list of at least one expression")
        return tuple(self._expression(v) for v in value)

    def _expression(self, value: Any) -> Expression:
        if isinstance(value, str):
            value = {"text": value}
        if not isinstance(value, Mapping) or not isinstance(value.get("text"), str):
            raise self._error("expressions", value, 'a string or {"text": "…", "kind": "…"}')
        self._known(value, {"text", "kind"})
        text, kind = value["text"], value.get("kind", "")
        if not text.strip() or len(text) > MAX_EXPRESSION_CHARACTERS:
            raise self._error("expressions", text[:40], f"text of 1 to {MAX_EXPRESSION_CHARACTERS} characters")
        if not isinstance(kind, str):
            raise self._error("expressions.kind", kind, "a string")
        return Expression(text, kind)

    def _check_ids(self, record: ImageRecord) -> None:
        ids = [target.id for target in record.targets]
        if len(set(ids)) < len(ids):
            twice = next(i for i in ids if ids.count(i) > 1)
            raise self._error("targets", f"the id {twice!r} twice", "ids that are unique within the record")
        for target in record.targets:
            if target.parent is not None and target.parent not in ids:
                raise self._error("parent", target.parent, "the id of a target of the same record, or null")

    def _check_runs(self, record: ImageRecord) -> None:
        """All masks in one go, which takes a tenth of the time; one by one only to say which is wrong."""
        area = record.height * record.width
        with suppress(ValueError):
            if (rle.num_pixels([target.mask.counts for target in record.targets]) == area).all():
                return
        for target in record.targets:
            reader = _Reader(f"{self.where}, target {target.id!r}")
            try:
                (covered,) = rle.num_pixels([target.mask.counts])
            except ValueError as error:
                raise reader._error("mask.counts", str(error), "COCO's compressed run lengths") from None
            if covered != area:
                found = f"runs that cover {covered} pixels"
                raise reader._error("mask.counts", found, f"{record.height} x {record.width} pixels")

    def _known(self, value: Mapping[str, Any], keys: set[str]) -> None:
        unknown = sorted(set(value) - keys)
        if unknown:
            raise RecordError(f"{self.where}: unknown field {unknown[0]!r}; {near(unknown[0], sorted(keys))}")

    def _text(self, value: Mapping[str, Any], field: str) -> str:
        text = value.get(field)
        if not isinstance(text, str) or not text:
            raise self._error(field, text, "a string that is not empty")
        return text

    def _side(self, value: Mapping[str, Any], field: str) -> int:
        side = value.get(field)
        if isinstance(side, bool) or not isinstance(side, int) or not 1 <= side <= MAX_SIDE:
            raise self._error(field, side, f"a whole number of pixels from 1 to {MAX_SIDE}")
        return side

    def _error(self, field: str, found: Any, allowed: str) -> RecordError:
        shown = repr(found)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return RecordError(f"{self.where}: field {field!r}: found {shown}, expected {allowed}")


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
