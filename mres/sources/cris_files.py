"""JSON lists of segments whose masks are files: CRIS's and RefCOCOm's form."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from os.path import isfile  # of names that no file can have, it says no
from pathlib import Path, PurePosixPath
from typing import Any

from mres.errors import UserError, shown
from mres.records import ImageRecord, RecordError, Rle
from mres.sources.coco_masks import bounding_box
from mres.sources.cris_tables import Segment, make_record, pictures
from mres.sources.image_folder import ImageFolder
from mres.sources.mask_files import read_mask
from mres.sources.reading import JsonFile, need_folder, read_image
from mres.sources.source import CheckKept, RecordSource, any_counts

_LOOKED_FOR = 20  # files of which at least one must be there before a build begins


@dataclass(frozen=True)
class EntryFile(JsonFile):
    """A JSON list of entries, one a segment; what is no object among them is an error of its own."""

    @classmethod
    def read(cls, path: Path, named_by: str = "--annotations") -> "EntryFile":
        """Raises: UserError, for a missing file with `named_by` as the remedy."""
        file = JsonFile.read(path, named_by)
        if not isinstance(file.value, list) or (file.value and not any(isinstance(one, dict) for one in file.value)):
            raise UserError(
                f"'{path}' is not of CRIS's form: expected a list of objects with 'img_name', 'segment_id' …"
            )
        if not file.value:
            raise UserError(f"'{path}' is an empty list")
        return cls(path, file.value, file.sha256)

    @property
    def entries(self) -> list[dict[str, Any]]:
        return [entry for entry in self.value if isinstance(entry, dict)]

    def segments(
        self, parse: Callable[[int, dict[str, Any], str], Segment]
    ) -> "tuple[list[Segment], list[RecordError]]":
        """What `parse(number, entry, where)` makes of each entry, and the errors of those that it refuses."""
        segments, errors = [], []
        image_of: dict[str, str] = {}
        for number, entry in enumerate(self.value):
            where = f"{self.path}: entry {number}"
            try:
                if not isinstance(entry, dict):
                    raise RecordError(
                        f"{where}: found {shown(entry)}, expected an object with 'img_name', 'segment_id' …"
                    )
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
    check_kept: CheckKept = any_counts,
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

    refused: list[str] = []

    def mask_of(segment: Segment, height: int, width: int) -> Rle:
        where = f"{file.path}: entry {segment.number}, segment {segment.id!r}"
        mask = read_mask(masks / f"{segment.id}.png", height, width, where, notes)
        _check_box(mask, segment.box, where)
        return mask

    def make(number: int) -> ImageRecord:
        picture = found[number]
        where = f"{file.path}: {picture.name}"
        image = read_image(folder, picture.name, where)
        return make_record(picture, image, mask_of, where, split=split, source=source, notes=notes, refused=refused)

    about = {"annotations": file.name, "annotations_sha256": file.sha256, "split": split, **description}
    return RecordSource(str(file.path), len(found), make, about, notes, errors, check_kept=check_kept, refused=refused)


def _check_folder(folder: Path, option: str, names: list[str]) -> None:
    need_folder(folder, option)
    first = names[:_LOOKED_FOR]
    if first and not any(isfile(folder / name) or isfile(folder / PurePosixPath(name).name) for name in first):
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
