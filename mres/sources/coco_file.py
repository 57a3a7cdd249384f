"""COCO-style JSON files: their tables checked, their images found, one record an image."""

import argparse
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mres.errors import UserError
from mres.records import ImageRecord, RecordError, Rle, Target
from mres.sources.coco_masks import EmptyMaskError, segmentation_rle
from mres.sources.image_folder import ImageFolder, plain_path
from mres.sources.reading import JsonFile, add_paths, need_folder, read_image, record_ids
from mres.sources.source import RecordSource

Annotation = dict[str, Any]


class CocoFile:
    """A COCO JSON, its tables checked as far as finding one's way in them goes.

    Categories whose name begins with "_" (`_background_`) are left out, with their annotations.

    Attributes:
        name: folder and name of the file; the same on every machine.
        fields: the names of everything at the top of the JSON.
        images: {id: entry}; annotations_of: {image id: entries}; names: {category id: name};
        errors: annotations that belong to no image.

    Raises:
        UserError: it cannot be read, is no COCO file, or an id or image file occurs twice.
    """

    def __init__(self, path: Path) -> None:
        file = JsonFile.read(path)
        self.path, self.name, self.sha256, value = path, file.name, file.sha256, file.value
        self.fields = frozenset(value) if isinstance(value, dict) else frozenset[str]()
        categories = self._table(value, "categories")
        self.names = {id_: self._text(entry, "categories", "name") for id_, entry in categories.items()}
        self.images = self._table(value, "images")
        for entry in self.images.values():
            if "file_name" not in entry and isinstance(
                entry.get("coco_url"), str
            ):  # LVIS v1: …/train2017/000000391895.jpg
                entry["file_name"] = "/".join(entry["coco_url"].split("/")[-2:])
        self.annotations_of: dict[Any, list[Annotation]] = defaultdict(list)
        self.errors: list[RecordError] = []
        self.refuse_same_names(lambda file_name: file_name)
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

    @property
    def file_names(self) -> list[str]:
        """The images' names, as in the file."""
        return [entry["file_name"] for entry in self.images.values()]

    def record_ids(self) -> dict[Any, str]:
        """{image id: its file's name without suffix}; of all with folders, and the suffix, where that would repeat."""
        return record_ids({image_id: entry["file_name"] for image_id, entry in self.images.items()}, alike=True)

    def annotated(self) -> list[Any]:
        """The ids of the images that have annotations, in the file's order."""
        return [image_id for image_id in self.images if self.annotations_of.get(image_id)]

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
        name = plain_path(self.images[image_id]["file_name"]).name
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


def add_coco_arguments(parser: argparse.ArgumentParser, images_help: str) -> None:
    """What every data set of COCO-style files is asked for: annotations, images, split."""
    add_paths(parser, ("--annotations", "FILE", "the COCO-style JSON"), ("--images", "DIR", images_help))
    parser.add_argument("--split", default="train", metavar="NAME", help="what the records are labelled as")


def image_source(
    file: CocoFile,
    images: Path,
    split: str,
    title: str,
    targets_of: Callable[[Any, int, int], Iterable[Target]],
    description: dict[str, Any],
    notes: "Counter[str]",
    *,
    chosen: Sequence[Any] | None = None,
    ids: Mapping[Any, str] | None = None,
) -> RecordSource:
    """One record for every image that has annotations, in the file's order.

    Args:
        file: the annotations.
        images: the folder of its images.
        split, title: the records' `split` and `source`.
        targets_of: (image id, height, width) → its targets; raises RecordError.
        description: the format's own part of the description.
        notes: what the format has left out already.
        chosen: the ids of the images; None: of all that are annotated.
        ids: {image id: its record's id}; None: `file.record_ids()`.

    Raises:
        UserError: no folder of images, or no annotated image.
    """
    need_folder(images, "--images")
    annotated = file.annotated()
    if not annotated:
        raise UserError(f"'{file.path}' has no annotated image ({len(file.images)} images)")
    if bare := len(file.images) - len(annotated):
        notes["images without annotations, left out"] = bare
    folder = ImageFolder(images, file.file_names, notes)
    image_ids, own_ids = chosen if chosen is not None else annotated, ids or file.record_ids()

    def make(number: int) -> ImageRecord:
        image_id = image_ids[number]
        where = file.where(image_id)
        height, width = file.size(image_id, where)
        image = read_image(folder, file.images[image_id]["file_name"], where)
        targets = tuple(targets_of(image_id, height, width))
        if not targets:
            raise RecordError(f"{where}: none of its masks covers a pixel")
        return ImageRecord(own_ids[image_id], image, width, height, split, title, targets)

    about = {"annotations": file.name, "annotations_sha256": file.sha256, "split": split, **description}
    return RecordSource(str(file.path), len(image_ids), make, about, notes, file.errors)
