"""An image record from the JSON of others (MRES JSONL): every field checked, and named where it is wrong."""

import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from mres import rle
from mres.errors import near, shown
from mres.records import (
    GRANULARITIES,
    MAX_EXPRESSION_CHARACTERS,
    MAX_SIDE,
    MAX_TARGETS,
    Expression,
    ImageRecord,
    RecordError,
    Rle,
    SourceId,
    Target,
)

_RECORD = frozenset({"id", "image", "width", "height", "split", "source", "targets"})
_TARGET = frozenset(
    {"id", "granularity", "category", "parent", "box", "mask", "expressions", "ref_id", "ann_id", "no_target"}
)
_EXPRESSION = frozenset({"text", "kind", "sent_id", "sent_index"})
# What other formats call a field → what it is here.
_OTHER_NAMES = {
    **dict.fromkeys(("image_id", "img_id", "uid", "record_id"), "id"),
    **dict.fromkeys(("file_name", "image_path", "img_name", "path"), "image"),
    **dict.fromkeys(("annotations", "anns", "objects", "instances", "masks"), "targets"),
    **dict.fromkeys(("label", "class", "class_name", "category_id"), "category"),
    **dict.fromkeys(("bbox", "bounding_box"), "box"),
    **dict.fromkeys(("segmentation", "rle", "polygon", "polygons"), "mask"),
    **dict.fromkeys(("sentences", "sents", "captions", "phrases", "texts"), "expressions"),
    **dict.fromkeys(("sent", "sentence", "caption", "phrase", "raw"), "text"),
    **dict.fromkeys(("annotation_id", "ann_ids"), "ann_id"),
}
_MOST_ID = 1 << 63
_SHOWN_FIELDS = 5  # unknown ones that a message names


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


class _Reader:
    """Checks one record; `self.where` grows as it goes down so that every message names its place."""

    def __init__(self, where: str) -> None:
        self.where = where

    def record(self, value: Mapping[str, Any], image: bytes) -> ImageRecord:
        self._known(value, _RECORD)
        record_id = self._text(value, "id")
        self.where = f"{self.where}: record {shown(record_id)}"
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
        self._check_no_target(record)
        return record

    def target(self, value: Any, position: int, width: int, height: int) -> Target:
        if not isinstance(value, Mapping):
            raise self._error(f"targets[{position}]", value, "a JSON object")
        self._known(value, _TARGET)
        target_id = self._text(value, "id")
        self.where = f"{self.where}, target {shown(target_id)}"
        granularity = value.get("granularity")
        if granularity not in GRANULARITIES:
            raise self._error("granularity", granularity, f"one of {', '.join(GRANULARITIES)}")
        parent = value.get("parent")
        if parent is not None and not isinstance(parent, str):
            raise self._error("parent", parent, "the id of a target of the same record, or null")
        no_target = value.get("no_target", False)
        if not isinstance(no_target, bool):
            raise self._error("no_target", no_target, "true where the expressions refer to nothing in the image")
        return Target(
            id=target_id,
            granularity=granularity,
            category="" if no_target and not value.get("category") else self._text(value, "category"),
            mask=self._mask(value.get("mask"), width, height),
            box=self._box(value.get("box")),
            expressions=self._expressions(value.get("expressions")),
            parent=parent,
            ref_id=self._source_id(value, "ref_id"),
            ann_id=self._ann_id(value),
            no_target=no_target,
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
        self._known(value, _EXPRESSION)
        text, kind, sent_index = value["text"], value.get("kind", ""), value.get("sent_index")
        if not text.strip() or len(text) > MAX_EXPRESSION_CHARACTERS or not _is_unicode(text):
            raise self._error("expressions", text, f"text of 1 to {MAX_EXPRESSION_CHARACTERS} characters")
        if not isinstance(kind, str) or not _is_unicode(kind):
            raise self._error("expressions.kind", kind, "text")
        if sent_index is not None and not (type(sent_index) is int and 0 <= sent_index < _MOST_ID):
            raise self._error("expressions.sent_index", sent_index, "a place from 0")
        return Expression(text, kind, self._source_id(value, "sent_id"), sent_index)

    def _source_id(self, value: Mapping[str, Any], field: str) -> SourceId | None:
        found = value.get(field)
        if found is None or is_source_id(found):
            return found
        raise self._error(field, found, "a whole number or text")

    def _ann_id(self, value: Mapping[str, Any]) -> SourceId | tuple[SourceId, ...] | None:
        found = value.get("ann_id")
        if not isinstance(found, list | tuple):
            return self._source_id(value, "ann_id")
        if not all(map(is_source_id, found)):
            raise self._error("ann_id", found, "a whole number or text, or a list of such")
        return tuple(found)

    def _check_ids(self, record: ImageRecord) -> None:
        ids = [target.id for target in record.targets]
        if len(set(ids)) < len(ids):
            twice = next(i for i in ids if ids.count(i) > 1)
            found = f"the id {shown(twice)} twice"
            raise self._error("targets", found, "ids that are unique within the record")
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
            reader = _Reader(f"{self.where}, target {shown(target.id)}")
            try:
                (covered,) = rle.num_pixels([target.mask.counts])
            except ValueError as error:
                raise reader._error("mask.counts", str(error), "COCO's compressed run lengths") from None
            if covered != area:
                found = f"runs that cover {covered} pixels"
                raise reader._error("mask.counts", found, f"{record.height} x {record.width} pixels")

    def _check_no_target(self, record: ImageRecord) -> None:
        for target in record.targets:
            if target.no_target and not target.mask.is_empty:
                where = f"{self.where}, target {shown(target.id)}"
                raise RecordError(f"{where}: field 'no_target': found true beside a mask with pixels, expected false")

    def _known(self, value: Mapping[str, Any], keys: frozenset[str]) -> None:
        unknown = sorted(str(key) for key in value.keys() - keys)[:_SHOWN_FIELDS]
        if not unknown:
            return
        others = {name: field for name, field in _OTHER_NAMES.items() if field in keys}
        raise RecordError(f"{self.where}: unknown field {'; '.join(_unknown(name, others, keys) for name in unknown)}")

    def _text(self, value: Mapping[str, Any], field: str) -> str:
        text = value.get(field)
        if not isinstance(text, str) or not text or not _is_unicode(text):
            raise self._error(field, text, "text that is not empty")
        return text

    def _side(self, value: Mapping[str, Any], field: str) -> int:
        side = value.get(field)
        if isinstance(side, bool) or not isinstance(side, int) or not 1 <= side <= MAX_SIDE:
            raise self._error(field, side, f"a whole number of pixels from 1 to {MAX_SIDE}")
        return side

    def _error(self, field: str, found: Any, allowed: str) -> RecordError:
        return RecordError(f"{self.where}: field {field!r}: found {shown(found)}, expected {allowed}")


def _unknown(name: str, others: Mapping[str, str], keys: frozenset[str]) -> str:
    meant = f"did you mean '{others[name]}'?" if name in others else near(name, sorted(keys))
    return f"{shown(name)}; {meant}"


def is_source_id(value: Any) -> bool:
    """Whether it may stand as an id of the source: text, or a whole number of up to 64 bits."""
    if isinstance(value, str):
        return _is_unicode(value)
    return type(value) is int and -_MOST_ID <= value < _MOST_ID


def _is_unicode(text: str) -> bool:
    """Lone surrogates (half a character), which JSON can spell, are no text: nothing could write them down again."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_finite(value: Any) -> bool:
    most = sys.float_info.max  # whole numbers of JSON may be larger than any float
    return isinstance(value, int | float) and not isinstance(value, bool) and -most <= value <= most
