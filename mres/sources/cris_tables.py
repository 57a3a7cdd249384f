"""What CRIS's JSON, its LMDB and RefCOCOm share: segments of images with their sentences, merged to image records."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mres.errors import UserError
from mres.records import MAX_EXPRESSION_CHARACTERS, Expression, Granularity, ImageRecord, RecordError, Rle, Target
from mres.sources.coco_masks import EmptyMaskError, bounding_box
from mres.sources.coco_names import COCO_NAMES
from mres.sources.image_folder import ImageFolder
from mres.sources.mask_files import read_mask
from mres.sources.reading import JsonFile, in_size_of_masks, need_folder, read_image, record_ids
from mres.sources.source import RecordSource

_LOOKED_FOR = 20  # files of which at least one must be there before a build begins


@dataclass(frozen=True, slots=True)
class Segment:
    """One entry of a file: a segment of an image and what is said of it.

    Attributes:
        number: the entry's place in its file, from 0.
        box: (x1, y1, x2, y2) in pixels, where the file says it.
    """

    number: int
    image_name: str
    id: str
    granularity: Granularity
    category: str
    expressions: tuple[Expression, ...]
    box: tuple[float, float, float, float] | None = None


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
) -> ImageRecord:
    """The record of an image, in the size that the image's header says and its masks have.

    Args:
        mask_of: (segment, height, width) → its mask; may raise `EmptyMaskError`, which is counted in `notes`.
        where: the file and the image, for messages.

    Raises:
        RecordError: not an image, no mask with a pixel, or one id for two masks.
    """

    def made(height: int, width: int) -> ImageRecord:
        targets: dict[str, Target] = {}
        for segment in picture.segments:
            try:
                mask = mask_of(segment, height, width)
            except EmptyMaskError:
                notes["masks that cover no pixel, left out"] += 1
                continue
            target = Target(
                segment.id, segment.granularity, segment.category, mask, bounding_box(mask), segment.expressions
            )
            targets[segment.id] = _merged(targets.get(segment.id), target, where, notes)
        if not targets:
            raise RecordError(f"{where}: none of its masks covers a pixel")
        return ImageRecord(picture.record_id, image, width, height, split, source, tuple(targets.values()))

    return in_size_of_masks(image, where, made)


def _merged(before: Target | None, target: Target, where: str, notes: "Counter[str]") -> Target:
    if before is None:
        return target
    if (before.mask, before.granularity, before.category) != (target.mask, target.granularity, target.category):
        raise RecordError(f"{where}: the segment id {target.id!r} stands for two different segments")
    notes["entries of a segment that had one already, merged"] += 1
    expressions = before.expressions + target.expressions
    return Target(target.id, target.granularity, target.category, target.mask, target.box, expressions)


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
        raise RecordError(f"{where}: field 'img_name': found {value!r}, expected an image's file name")
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts:
        raise RecordError(f"{where}: field 'img_name': '{value}' leaves the folder of the images")
    return value


def _segment_id(value: Any, where: str, field: str) -> str:
    """A checked id, a whole number or text, as text that may stand in a file name."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not text or not text.isprintable() or {"/", "\\"} & set(text):
        raise RecordError(f"{where}: field '{field}': found {value!r}, expected a whole number or a name without '/'")
    return text


def _expressions(value: Any, where: str, field: str, notes: "Counter[str]") -> tuple[Expression, ...]:
    """The sentences of a segment: {"sent": text, …} or the text itself; blank ones are counted and left out."""
    if not isinstance(value, list):
        raise RecordError(f"{where}: field '{field}': found {type(value).__name__}, expected a list of sentences")
    found = []
    for item in value:
        text = item.get("sent") if isinstance(item, dict) else item
        if not isinstance(text, str) or len(text) > MAX_EXPRESSION_CHARACTERS:
            raise RecordError(
                f"{where}: field '{field}': found {str(item)[:60]!r}, expected text of up to "
                f"{MAX_EXPRESSION_CHARACTERS} characters, or such under 'sent'"
            )
        if text.strip():
            found.append(Expression(text.strip()))
        else:
            notes["blank expressions, left out"] += 1
    return tuple(found)


def check_count(value: Any, counted: Any, where: str, field: str) -> None:
    """A number of sentences, where the file says it, must be that of the list."""
    if value is not None and value != len(counted):
        raise RecordError(f"{where}: field '{field}': found {value!r}, but {len(counted)} sentences are listed")


def _coco_category(value: Any, where: str) -> str:
    """The name of a `cat`, which is a place in COCO's 80 categories."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(COCO_NAMES):
        raise RecordError(f"{where}: field 'cat': found {value!r}, expected 0 to 79, a place among COCO's categories")
    return COCO_NAMES[value]


@dataclass(frozen=True)
class EntryFile(JsonFile):
    """A JSON list of entries, one a segment."""

    @classmethod
    def read(cls, path: Path, named_by: str = "--annotations") -> "EntryFile":
        """Raises: UserError, for a missing file with `named_by` as the remedy."""
        file = JsonFile.read(path, named_by)
        if not isinstance(file.value, list) or not all(isinstance(entry, dict) for entry in file.value):
            raise UserError(
                f"'{path}' is not of CRIS's form: expected a list of objects with 'img_name', 'segment_id' …"
            )
        if not file.value:
            raise UserError(f"'{path}' is an empty list")
        return cls(path, file.value, file.sha256)

    @property
    def entries(self) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self.value
        return entries

    def segments(
        self, parse: Callable[[int, dict[str, Any], str], Segment]
    ) -> "tuple[list[Segment], list[RecordError]]":
        """What `parse(number, entry, where)` makes of each entry, and the errors of those that it refuses."""
        segments, errors = [], []
        image_of: dict[str, str] = {}
        for number, entry in enumerate(self.entries):
            where = f"{self.path}: entry {number}"
            try:
                segment = parse(number, entry, where)
                if (other := image_of.setdefault(segment.id, segment.image_name)) != segment.image_name:
                    raise RecordError(
                        f"{where}: the segment id {segment.id!r} belongs to '{segment.image_name}' "
                        f"and, before, to '{other}'"
                    )
                segments.append(segment)
            except RecordError as error:
                errors.append(error)
        return segments, errors


def file_source(
    file: EntryFile,
    parsed: tuple[list[Segment], list[RecordError]],
    masks: Path,
    images: Path,
    *,
    split: str,
    source: str,
    description: dict[str, Any],
    notes: "Counter[str]",
) -> RecordSource:
    """The records of segments whose masks are `<masks>/<segment id>.png`; entries that were refused come first.

    Raises:
        UserError: a folder that is not there, or holds nothing of what the file names.
    """
    segments, errors = parsed
    found = pictures(segments, file.path, notes)
    _check_folder(masks, "--masks", [f"{segment.id}.png" for segment in segments])
    _check_folder(images, "--images", [picture.name for picture in found])
    folder = ImageFolder(images, [picture.name for picture in found], notes)

    def mask_of(segment: Segment, height: int, width: int) -> Rle:
        where = f"{file.path}: entry {segment.number}, segment {segment.id!r}"
        mask = read_mask(masks / f"{segment.id}.png", height, width, where, notes)
        _check_box(mask, segment.box, where)
        return mask

    def make(number: int) -> ImageRecord:
        picture = found[number]
        where = f"{file.path}: {picture.name}"
        image = read_image(folder, picture.name, where)
        return make_record(picture, image, mask_of, where, split=split, source=source, notes=notes)

    about = {"annotations": file.name, "annotations_sha256": file.sha256, "split": split, **description}
    return RecordSource(str(file.path), len(found), make, about, notes, errors)


def _check_folder(folder: Path, option: str, names: list[str]) -> None:
    need_folder(folder, option)
    first = names[:_LOOKED_FOR]
    if first and not any((folder / name).is_file() or (folder / PurePosixPath(name).name).is_file() for name in first):
        raise UserError(
            f"'{folder}' ({option}) has none of the first {len(first)} files that are needed, as '{first[0]}'"
        )


def _check_box(mask: Rle, box: tuple[float, float, float, float] | None, where: str) -> None:
    """A mask that lies elsewhere than its entry says is mostly that of another data set with the same number."""
    if box is None:
        return
    x, y, width, height = bounding_box(mask)
    if x > box[2] or y > box[3] or x + width < box[0] or y + height < box[1]:
        raise RecordError(
            f"{where}: the mask covers x {x:g} to {x + width:g}, y {y:g} to {y + height:g}, outside of its 'bbox' "
            f"{list(box)}; are these the masks of this data set?"
        )
