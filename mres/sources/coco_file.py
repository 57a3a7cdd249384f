"""COCO-style JSON files: their tables checked, their images found, one record an image."""

import argparse
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mres.errors import UserError
from mres.records import ImageRecord, RecordError, Rle, Target
from mres.sources.coco_masks import EmptyMaskError, segmentation_rle
from mres.sources.source import Source

Annotation = dict[str, Any]


class CocoFile:
    """A COCO JSON, its tables checked as far as finding one's way in them goes.

    Categories whose name begins with "_" (`_background_`) are left out, with their annotations.

    Attributes:
        name: folder and name of the file; the same on every machine.
        fields: the names of everything at the top of the JSON.
        images: {id: entry}; annotations_of: {image id: entries}; names: {category id: name};
        names_repeat: image files have the same name in different folders;
        errors: annotations that belong to no image.

    Raises:
        UserError: it cannot be read, is no COCO file, or an id or image file occurs twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = f"{path.resolve().parent.name}/{path.name}"
        try:
            content = path.read_bytes()
            value = json.loads(content)
        except FileNotFoundError:
            raise UserError(f"no annotations at '{path}' (--annotations)") from None
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"cannot read '{path}' as a COCO file: {error}") from None
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.fields = frozenset(value) if isinstance(value, dict) else frozenset[str]()
        categories = self._table(value, "categories")
        self.names = {id_: self._text(entry, "categories", "name") for id_, entry in categories.items()}
        self.images = self._table(value, "images")
        self.annotations_of: dict[Any, list[Annotation]] = defaultdict(list)
        self.errors: list[RecordError] = []
        self.refuse_same_names(lambda file_name: file_name)
        stems = {PurePosixPath(entry["file_name"]).stem for entry in self.images.values()}
        self.names_repeat = len(stems) < len(self.images)
        for annotation in self._table(value, "annotations").values():
            self._sort_in(annotation)

    def refuse_same_names(self, name_of: Callable[[str], str]) -> None:
        """Raises UserError where two images have one `name_of(file_name)`: they would silently share a picture."""
        seen: dict[str, Any] = {}
        for image_id, entry in self.images.items():
            name = name_of(self._text(entry, "images", "file_name"))
            if name in seen:
                raise UserError(
                    f"'{self.path}': images {seen[name]!r} and {image_id!r} both have the file name '{name}'"
                )
            seen[name] = image_id

    def record_ids(self) -> dict[Any, str]:
        """{image id: its file's name without suffix}; with its folders, and the suffix, where that would repeat."""
        paths = {image_id: PurePosixPath(entry["file_name"]) for image_id, entry in self.images.items()}
        if self.names_repeat:
            bare = {str(path.with_suffix("")) for path in paths.values()}
            repeat = len(bare) < len(paths)
            return {image_id: str(path if repeat else path.with_suffix("")) for image_id, path in paths.items()}
        return {image_id: path.stem for image_id, path in paths.items()}

    def size(self, image_id: Any, where: str) -> tuple[int, int]:
        """(height, width) of an image in pixels, as its entry says. Raises: RecordError."""
        entry = self.images[image_id]
        width, height = entry.get("width"), entry.get("height")
        if not (isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0):
            raise RecordError(f"{where}: width {width!r} and height {height!r}, expected whole numbers of pixels")
        return height, width

    def category(self, annotation: Annotation, where: str) -> str:
        """The name of an annotation's category. Raises: RecordError."""
        name = self.names.get(annotation.get("category_id"))
        if name is None:
            raise RecordError(f"{where}: its category {annotation.get('category_id')!r} is not in 'categories'")
        return name

    def where(self, image_id: Any, annotation: Annotation | None = None) -> str:
        """File, image and annotation for messages."""
        name = PurePosixPath(self.images[image_id]["file_name"]).name
        place = "" if annotation is None else f", annotation {annotation['id']!r}"
        return f"{self.path}: image {image_id!r} ({name}){place}"

    def _table(self, value: Any, name: str) -> dict[Any, dict[str, Any]]:
        entries = value.get(name) if isinstance(value, dict) else None
        if not isinstance(entries, list):
            raise UserError(f"'{self.path}' is not a COCO file: it has no list '{name}'")
        table: dict[Any, dict[str, Any]] = {}
        for position, entry in enumerate(entries):
            if not isinstance(entry, dict) or not isinstance(entry.get("id"), int | str):
                raise UserError(f"'{self.path}' is not a COCO file: {name}[{position}] has no 'id'")
            if entry["id"] in table:
                raise UserError(f"'{self.path}': the id {entry['id']!r} occurs twice in '{name}'")
            table[entry["id"]] = entry
        return table

    def _text(self, entry: dict[str, Any], table: str, field: str) -> str:
        text = entry.get(field)
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"'{self.path}': {table}, id {entry['id']!r}: field '{field}' is {text!r}, expected text")
        return text

    def _sort_in(self, annotation: Annotation) -> None:
        where = f"{self.path}: annotation {annotation['id']!r}"
        image_id, category = annotation.get("image_id"), annotation.get("category_id")
        if not isinstance(image_id, int | str) or image_id not in self.images:
            self.errors.append(RecordError(f"{where}: its image {image_id!r} is not in 'images'"))
        elif not isinstance(category, int | str):
            self.errors.append(RecordError(f"{where}: its category {category!r} is not in 'categories'"))
        elif not self.names.get(category, "").startswith("_"):
            self.annotations_of[image_id].append(annotation)


def read_image(folder: Path, file_name: str, where: str, *, exact: bool = False) -> bytes:
    """An image's bytes: `file_name` below `folder`; unless `exact`, also without its first folders, down to the bare name.

    Raises:
        RecordError: no such file, or a path that leaves the folder.
    """
    parts = PurePosixPath(file_name).parts
    if not parts or PurePosixPath(file_name).is_absolute() or ".." in parts or "\0" in file_name:
        raise RecordError(f"{where}: the image path {file_name!r} leaves the folder of the images")
    places = [folder.joinpath(*parts[start:]) for start in range(1 if exact else len(parts))]
    place = next((place for place in places if place.is_file()), places[-1])
    try:
        return place.read_bytes()
    except OSError as error:
        raise RecordError(f"{where}: '{place}' cannot be read: {error.strerror}") from None


def annotation_mask(segmentation: Any, height: int, width: int, where: str, notes: "Counter[str]") -> Rle | None:
    """An annotation's mask; None, and counted, if it covers no pixel. Raises: RecordError."""
    try:
        mask, clipped = segmentation_rle(segmentation, height, width)
    except EmptyMaskError:
        notes["masks that cover no pixel, left out"] += 1
        return None
    except ValueError as error:
        raise RecordError(f"{where}: {error}") from None
    if clipped:
        notes["masks clipped to their image"] += 1
    return mask


@dataclass(frozen=True)
class CocoOptions:
    """What every data set of COCO-style files is asked for.

    Attributes:
        annotations: the JSON.
        images: the folder of its images.
        split: the name that the records carry.
    """

    annotations: Path
    images: Path
    split: str


def add_coco_arguments(parser: argparse.ArgumentParser, images_help: str) -> None:
    parser.add_argument(
        "--annotations", type=Path, required=True, default=argparse.SUPPRESS, metavar="FILE", help="the COCO-style JSON"
    )
    parser.add_argument(
        "--images", type=Path, required=True, default=argparse.SUPPRESS, metavar="DIR", help=images_help
    )
    parser.add_argument("--split", default="train", metavar="NAME", help="what the records are labelled as")


def coco_options(arguments: argparse.Namespace) -> CocoOptions:
    return CocoOptions(arguments.annotations, arguments.images, arguments.split)


def image_source(
    file: CocoFile,
    options: CocoOptions,
    title: str,
    targets_of: Callable[[Any, int, int], Sequence[Target]],
    description: dict[str, Any],
    notes: "Counter[str]",
    places: Callable[[str], str] = lambda file_name: file_name,
) -> Source:
    """One record for every image that has annotations, in the file's order.

    Args:
        file: the annotations.
        options: where the images are, and the split's name.
        title: the data set's name, the records' `source`.
        targets_of: (image id, height, width) → its targets; raises RecordError.
        description: the format's own part of the description.
        notes: what the format has left out already.
        places: `file_name` → the path that images are looked up by.

    Raises:
        UserError: no folder of images, or no annotated image.
    """
    if not options.images.is_dir():
        raise UserError(f"no folder of images at '{options.images}' (--images)")
    annotated = [image_id for image_id in file.images if file.annotations_of.get(image_id)]
    if not annotated:
        raise UserError(f"'{file.path}' has no annotated image ({len(file.images)} images)")
    if bare := len(file.images) - len(annotated):
        notes["images without annotations, left out"] = bare
    ids = file.record_ids()

    def make(number: int) -> ImageRecord:
        if number < len(file.errors):
            raise file.errors[number]
        image_id = annotated[number - len(file.errors)]
        where = file.where(image_id)
        height, width = file.size(image_id, where)
        file_name = places(file.images[image_id]["file_name"])
        image = read_image(options.images, file_name, where, exact=file.names_repeat)
        targets = tuple(targets_of(image_id, height, width))
        if not targets:
            raise RecordError(f"{where}: none of its masks covers a pixel")
        return ImageRecord(ids[image_id], image, width, height, options.split, title, targets)

    about = {"annotations": file.name, "annotations_sha256": file.sha256, "split": options.split, **description}
    return Source(str(file.path), len(file.errors) + len(annotated), make, about, notes)
