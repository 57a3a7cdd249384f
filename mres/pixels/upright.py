"""A record as a shard holds it: its picture upright and plain, its masks and boxes on it."""

from collections import Counter
from dataclasses import replace
from typing import Literal

from mres.pixels.picture import Header, PictureError, plain_bytes, read_header, turned, turned_box
from mres.pixels.text_flip import may_name_place
from mres.records import Expression, ImageRecord, RecordError, Target, decode_masks, encode_mask

Frame = Literal["auto", "upright", "stored"]
FRAMES: tuple[Frame, ...] = ("auto", "upright", "stored")
# Among the options of a set whose records went through here; images of one without it are as their files had them.
UPRIGHT = {"pixels": "upright"}
ASSUMED = "turned images whose sizes do not tell whether they were annotated upright; assumed so (--orientation)"
_PLACES = (
    "expressions that name a side or a height, or that cannot be judged, of an image that was then turned: left out"
)


def upright_record(record: ImageRecord, frame: Frame, where: str, notes: "Counter[str]") -> ImageRecord:
    """The record with an upright image (JPEG or PNG, 8 bits, grey or RGB); itself where that is so already.

    Args:
        record: its image may have any format that is read, and an EXIF orientation.
        frame: what its masks were drawn on. "auto": the size that the record says tells, and upright where it does not.
        where: for messages.
        notes: where it is counted what was done.

    Raises:
        RecordError: not an image, damaged, of another size than the record says, or of values without a clear scale.
    """
    where = f"{where}: record {record.id!r}: image"
    try:
        header = read_header(record.image)
        as_stored = _is_annotated_as_stored((record.width, record.height), header, frame, where, notes)
        if header.is_plain:
            return record
        image, made = plain_bytes(record.image)
    except PictureError as error:
        raise RecordError(f"{where}: it {error}") from None
    _count(header, made, notes)
    width, height = header.upright_size
    targets = _turned_targets(record, header, where, notes) if as_stored else record.targets
    return replace(record, image=image, width=width, height=height, targets=targets)


def _is_annotated_as_stored(
    size: tuple[int, int], header: Header, frame: Frame, where: str, notes: "Counter[str]"
) -> bool:
    """Whether masks must be turned with the image; `size` is what the annotation says."""
    allowed = {"auto": (header.size, header.upright_size), "upright": (header.upright_size,), "stored": (header.size,)}
    if size not in allowed[frame]:
        chosen = "" if frame == "auto" or header.orientation == 1 else f" (--orientation {frame})"
        raise RecordError(f"{where}: it has {header.sizes()}, the record says {size[0]}x{size[1]}{chosen}")
    if header.orientation == 1:
        return False
    if header.size != header.upright_size or frame != "auto":
        return size != header.upright_size or frame == "stored"
    notes[ASSUMED] += 1
    return False


def _count(header: Header, made: str, notes: "Counter[str]") -> None:
    if header.orientation != 1:
        notes["images turned upright, as their EXIF orientation says"] += 1
    if header.format not in ("JPEG", "PNG"):
        notes[f"images of the format {header.format}, stored as {made}"] += 1
    elif header.orientation == 1:
        what = "transparency or more than 8 bits" if header.mode in ("L", "RGB") else f"the mode {header.mode}"
        notes[f"{header.format} images of {what}, stored with 8 bits, grey or RGB"] += 1


def _turned_targets(record: ImageRecord, header: Header, where: str, notes: "Counter[str]") -> tuple[Target, ...]:
    """Masks and boxes turned with the image; what was said of places was said of the image as stored, and goes."""
    notes["of these, annotated as stored: masks and boxes turned along"] += 1
    targets = []
    for target in record.targets:
        expressions = tuple(e for e in target.expressions if _outlives_turn(e))
        if left_out := len(target.expressions) - len(expressions):
            notes[_PLACES] += left_out
        if not expressions:
            continue
        try:
            (mask_HW,) = decode_masks([target.mask])
        except ValueError as error:
            raise RecordError(f"{where}: the mask of target {target.id!r}: {error}") from None
        mask = encode_mask(turned(mask_HW, header.orientation))
        box = turned_box(target.box, header.size, header.orientation)
        targets.append(replace(target, mask=mask, box=box, expressions=expressions))
    if not targets:
        raise RecordError(
            f"{where}: it was annotated as stored and is turned; what is said of it names sides or heights, or cannot be "
            "judged: turn image and masks upright, and say it of that"
        )
    ids = {target.id for target in targets}
    return tuple(target if target.parent in ids else replace(target, parent=None) for target in targets)


def _outlives_turn(expression: Expression) -> bool:
    return expression.kind != "position" and not may_name_place(expression.text, is_name=expression.kind == "category")
