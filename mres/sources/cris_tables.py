"""What CRIS's JSON, its LMDB and RefCOCOm share: segments of images with their sentences, merged to image records."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from mres.errors import UserError, shown
from mres.record_checks import is_source_id
from mres.records import (
    MAX_EXPRESSION_CHARACTERS,
    Expression,
    Granularity,
    ImageRecord,
    RecordError,
    Rle,
    SourceId,
    Target,
)
from mres.sources.coco_masks import (
    KEPT_EMPTY,
    LEFT_OUT_EMPTY,
    EmptyMaskError,
    MaskSizeError,
    bounding_box,
    empty_mask,
    is_held_out,
)
from mres.sources.coco_names import COCO_NAMES
from mres.sources.reading import in_size_of_masks, record_ids
from mres.sources.source import NothingLeftError


@dataclass(frozen=True, slots=True)
class Segment:
    """One entry of a file: a segment of an image and what is said of it.

    Attributes:
        number: the entry's place in its file, from 0.
        box: (x1, y1, x2, y2) in pixels, where the file says it.
        ref_id: REFER's id, which CRIS calls its segments by.
    """

    number: int
    image_name: str
    id: str
    granularity: Granularity
    category: str
    expressions: tuple[Expression, ...]
    box: tuple[float, float, float, float] | None = None
    ref_id: SourceId | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """An image and all its segments, in the file's order."""

    name: str
    record_id: str
    segments: tuple[Segment, ...]


def pictures(segments: Sequence[Segment], path: Path, notes: "Counter[str]") -> list[Picture]:
    """The segments by image, in the order of each image's first; those of which nothing is said are left out.

    Raises:
        UserError: nothing is said of any.
    """
    of_image: dict[str, list[Segment]] = {}
    for segment in segments:
        if segment.expressions:
            of_image.setdefault(segment.image_name, []).append(segment)
        else:
            notes["entries without expressions, left out"] += 1
    if segments and not of_image:
        raise UserError(f"'{path}': none of its {len(segments)} entries has an expression")
    ids = record_ids({name: name for name in of_image}, alike=False)
    return [Picture(name, ids[name], tuple(found)) for name, found in of_image.items()]


def make_record(
    picture: Picture,
    image: bytes,
    mask_of: Callable[[Segment, int, int], Rle],
    where: str,
    *,
    split: str,
    source: str,
    notes: "Counter[str]",
    refused: list[str],
) -> ImageRecord:
    """The record of an image, in the size that the image's header says and its masks have.

    Args:
        mask_of: (segment, height, width) → its mask; may raise `EmptyMaskError`: kept as it is in a held-out split, left out
            for training, and counted.
        where: the file and the image, for messages.
        refused: gets what is wrong with a mask that cannot be read; it costs its segment.

    Raises:
        RecordError: not an image, masks of another size or none that can be read, or one id for two masks.
        NothingLeftError: no mask with a pixel, for training.
    """

    def made(height: int, width: int) -> ImageRecord:
        targets: dict[str, Target] = {}
        bad: list[str] = []
        for segment in picture.segments:
            try:
                mask = mask_of(segment, height, width)
            except EmptyMaskError:
                notes[KEPT_EMPTY if is_held_out(split) else LEFT_OUT_EMPTY] += 1
                if not is_held_out(split):
                    continue
                mask = empty_mask(height, width)
            except MaskSizeError:
                raise
            except RecordError as error:
                bad.append(str(error))
                continue
            target = Target(
                segment.id,
                segment.granularity,
                segment.category,
                mask,
                bounding_box(mask),
                segment.expressions,
                ref_id=segment.ref_id,
            )
            targets[segment.id] = _merged(targets.get(segment.id), target, where, notes)
        if bad and not targets:
            raise RecordError(bad[0])
        refused.extend(bad)
        if not targets:
            notes["images none of whose masks covers a pixel, left out"] += 1
            raise NothingLeftError(f"{where}: none of its masks covers a pixel")
        return ImageRecord(picture.record_id, image, width, height, split, source, tuple(targets.values()))

    return in_size_of_masks(image, where, made)


def _merged(before: Target | None, target: Target, where: str, notes: "Counter[str]") -> Target:
    if before is None:
        return target
    if (before.mask, before.granularity, before.category) != (target.mask, target.granularity, target.category):
        raise RecordError(f"{where}: the segment id {target.id!r} stands for two different segments")
    notes["entries of a segment that had one already, merged"] += 1
    return replace(target, expressions=before.expressions + target.expressions)


def read_segment(
    number: int,
    entry: dict[str, Any],
    where: str,
    notes: "Counter[str]",
    *,
    granularity: Granularity = "object",
    category: str | None = None,
    id_field: str = "segment_id",
    sentences_field: str = "sentences",
) -> Segment:
    """The segment of entry `number`, checked; its category is that of its `cat` unless given. Raises: RecordError."""
    return Segment(
        number=number,
        image_name=_image_name(entry.get("img_name"), where),
        id=_segment_id(entry.get(id_field), where, id_field),
        granularity=granularity,
        category=_coco_category(entry.get("cat"), where) if category is None else category,
        expressions=_expressions(entry.get(sentences_field), where, sentences_field, notes),
    )


def _image_name(value: Any, where: str) -> str:
    """A checked `img_name`: a relative path that stays in its folder."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise RecordError(f"{where}: field 'img_name': found {shown(value)}, expected an image's file name")
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts:
        raise RecordError(f"{where}: field 'img_name': '{value}' leaves the folder of the images")
    return value


def _segment_id(value: Any, where: str, field: str) -> str:
    """A checked id, a whole number or text, as text that may stand in a file name."""
    text = str(value) if is_source_id(value) else ""
    if not text or not text.isprintable() or {"/", "\\"} & set(text):
        found = f"found {shown(value)}, expected a whole number or a name without '/'"
        raise RecordError(f"{where}: field '{field}': {found}")
    return text


def _expressions(value: Any, where: str, field: str, notes: "Counter[str]") -> tuple[Expression, ...]:
    """The sentences of a segment: {"sent": text, …} or the text itself; blank ones are counted and left out."""
    if not isinstance(value, list):
        raise RecordError(f"{where}: field '{field}': found {type(value).__name__}, expected a list of sentences")
    found = []
    for index, item in enumerate(value):
        text, sent_id = (item.get("sent"), item.get("sent_id")) if isinstance(item, dict) else (item, None)
        if not isinstance(text, str) or len(text) > MAX_EXPRESSION_CHARACTERS or not is_source_id(text):
            raise RecordError(
                f"{where}: field '{field}': found {shown(item)}, expected text of up to "
                f"{MAX_EXPRESSION_CHARACTERS} characters, or such under 'sent'"
            )
        if text.strip():
            found.append(Expression(text.strip(), "", sent_id if is_source_id(sent_id) else None, index))
        else:
            notes["blank sentences, left out"] += 1
    return tuple(found)


def check_count(value: Any, counted: Any, where: str, field: str) -> None:
    """A number of sentences, where the file says it, must be that of the list."""
    if value is not None and value != len(counted):
        raise RecordError(f"{where}: field '{field}': found {shown(value)}, but {len(counted)} sentences are listed")


def _coco_category(value: Any, where: str) -> str:
    """The name of a `cat`, which is a place in COCO's 80 categories."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(COCO_NAMES):
        raise RecordError(
            f"{where}: field 'cat': found {shown(value)}, expected 0 to 79, a place among COCO's categories"
        )
    return COCO_NAMES[value]
