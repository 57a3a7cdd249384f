"""COCO-style JSON files: their tables checked, their images found, one record an image."""

import argparse
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

from mres.errors import UserError, near, shown
from mres.records import MAX_SIDE, ImageRecord, RecordError, Target
from mres.sources.coco_masks import LEFT_OUT_BARE, has_no_mask, is_drawn, is_held_out
from mres.sources.image_folder import ImageFolder, plain_path
from mres.sources.other_json import what_it_is
from mres.sources.reading import JsonFile, add_paths, id_of, need_folder, read_image, record_ids
from mres.sources.source import NothingLeftError, RecordSource, Undrawn

Annotation = dict[str, Any]
Id: TypeAlias = int | str
SHOWN = 20  # errors that a message names


class CocoFile:
    """A COCO JSON, its tables checked as far as finding one's way in them goes.

    Ids are compared as `id_of` says, and stand so in the entries: 7, 7.0 and "7" are one. Categories whose name begins
    with "_" (`_background_`) are left out, with their annotations.

    Args:
        needs_names: an annotation whose category is not in 'categories' is an error.

    Attributes:
        name: folder and name of the file; the same on every machine.
        fields: the names of everything at the top of the JSON.
        categories, images: {id: entry}; annotations_of: {image id: entries}; names: {category id: name};
        errors: entries that cannot be used, each of which costs itself alone;
        left_out: what of the file is left out without being an error, message → number of times.

    Raises:
        UserError: it cannot be read, is no COCO file, or a category has no name or its id twice.
    """

    def __init__(self, path: Path, *, needs_names: bool = True) -> None:
        file = JsonFile.read(path)
        self.path, self.name, self.sha256, value = path, file.name, file.sha256, file.value
        self.fields = frozenset(value) if isinstance(value, dict) else frozenset[str]()
        self.errors: list[RecordError] = []
        self.left_out: Counter[str] = Counter()
        self._needs_names = needs_names
        self.names = self._names(value)
        self.images = self._images(value)
        self.annotations_of: dict[Any, list[Annotation]] = defaultdict(list)
        for annotation in self._table(value, "annotations").values():
            self._sort_in(annotation)

    @property
    def file_names(self) -> list[str]:
        """The images' names, as in the file."""
        return [entry["file_name"] for entry in self.images.values()]

    def record_ids(self) -> dict[Any, str]:
        """{image id: its file's name without suffix}; of all with folders, and the suffix, where that would repeat."""
        return record_ids({image_id: entry["file_name"] for image_id, entry in self.images.items()}, alike=True)

    def annotated(self) -> list[Any]:
        """The ids of the images that have annotations with a mask, in the file's order.

        Raises:
            UserError: no image has annotations, or no annotation has a mask.
        """
        found = [i for i in self.images if self.annotations_of.get(i)]
        masked = [i for i in found if any(not has_no_mask(a.get("segmentation")) for a in self.annotations_of[i])]
        if not found:
            refused = f"; what was refused: {listed(self.errors)}" if self.errors else ""
            raise UserError(f"'{self.path}' has no annotated image ({len(self.images)} images){refused}")
        if not masked:
            raise UserError(
                f"'{self.path}' has {sum(map(len, self.annotations_of.values()))} annotations and none has a mask "
                "('segmentation'); boxes alone, as Objects365 is published, cannot be trained on: make masks from the boxes "
                "with a promptable segmenter, as MRES-32M's authors did, and add them as COCO run lengths"
            )
        return masked

    def size(self, image_id: Any, where: str) -> tuple[int, int] | None:
        """(height, width) of an image in pixels, as its entry says; None if it says nothing. Raises: RecordError."""
        entry = self.images[image_id]
        width, height = (id_of(entry.get(name)) for name in ("width", "height"))
        if entry.get("width") is None and entry.get("height") is None:
            return None
        if isinstance(width, int) and isinstance(height, int) and 0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE:
            return height, width
        found = f"width {shown(entry.get('width'))} and height {shown(entry.get('height'))}"
        raise RecordError(f"{where}: {found}, expected whole numbers of pixels, 1 to {MAX_SIDE}")

    def category(self, annotation: Annotation, where: str) -> str:
        """The name of an annotation's category. Raises: RecordError."""
        name = self.names.get(annotation["category_id"])
        if name is None:
            raise RecordError(f"{where}: its category {annotation['category_id']!r} is not in 'categories'")
        return name

    def where(self, image_id: Any, annotation: Annotation | None = None) -> str:
        """File, image and annotation for messages."""
        name = plain_path(self.images[image_id]["file_name"]).name.encode(errors="backslashreplace").decode()
        place = "" if annotation is None else f", annotation {annotation['id']!r}"
        return f"{self.path}: image {image_id!r} ({name}){place}"

    def _names(self, value: Any) -> dict[Id, str]:
        if not self._needs_names and isinstance(value, dict) and value.get("categories") is None:
            self.categories = {}
            return {}
        names = {}
        self.categories = self._table(value, "categories")
        for id_, entry in self.categories.items():
            name = entry.get("name")
            if _is_text(name):
                names[id_] = name.strip()
            elif self._needs_names:
                found = f"categories, id {id_!r}: field 'name' is {shown(name)}, expected text"
                self.errors.append(RecordError(f"{self.path}: {found}"))
        if self.errors and self._needs_names:
            raise UserError(f"'{self.path}': {listed(self.errors)}")
        return names

    def _images(self, value: Any) -> dict[Id, dict[str, Any]]:
        """The images that have a file of their own; two of one name would silently share a picture."""
        images, seen = {}, dict[str, Id]()
        for id_, entry in self._table(value, "images").items():
            if not _is_text(entry.get("file_name")) and isinstance(
                entry.get("coco_url"), str
            ):  # LVIS v1: …/train2017/000000391895.jpg
                entry["file_name"] = "/".join(entry["coco_url"].split("/")[-2:])
            name = entry.get("file_name")
            if not _is_text(name):
                error = f"images, id {id_!r}: field 'file_name' is {shown(name)}, expected text"
            elif (path := str(plain_path(name))) in seen:
                error = f"images {seen[path]!r} and {id_!r} both have the file name {name!r}; the second is left out"
            else:
                seen[path], images[id_] = id_, entry
                continue
            self.errors.append(RecordError(f"{self.path}: {error}"))
        return images

    def _table(self, value: Any, name: str) -> dict[Id, dict[str, Any]]:
        """A table by its ids; entries without one, or with one that another entry has, become errors."""
        entries = value.get(name) if isinstance(value, dict) else None
        if not isinstance(entries, list):
            meant = near(name, self.fields - {name}, otherwise="")
            raise UserError(
                f"'{self.path}' is not a COCO file: it has no list '{name}'{meant and '; ' + meant}{what_it_is(value)}"
            )
        table: dict[Id, dict[str, Any]] = {}
        places, errors, of_two = dict[Id, int](), list[str](), set[Id]()
        for position, entry in enumerate(entries):
            id_ = id_of(entry.get("id")) if isinstance(entry, dict) else None
            if id_ is None:
                found = f", found {shown(entry['id'])}" if isinstance(entry, dict) and "id" in entry else ""
                errors.append(f"{name}[{position}] has no 'id' that is a number or text{found}")
            elif id_ in table:
                errors.append(f"the id {id_!r} occurs twice in '{name}': {name}[{places[id_]}] and {name}[{position}]")
                if entry.get("file_name") != table[id_].get("file_name"):  # whose are its annotations?
                    of_two.add(id_)
            else:
                table[id_], places[id_] = entry, position
                entry["id"] = id_
        if errors and not table:
            raise UserError(f"'{self.path}' is not a COCO file: {listed(errors)}")
        self.errors += [RecordError(f"{self.path}: {error}") for error in errors]
        return {id_: entry for id_, entry in table.items() if id_ not in of_two}

    def _sort_in(self, annotation: Annotation) -> None:
        where = f"{self.path}: annotation {annotation['id']!r}"
        image_id, category = id_of(annotation.get("image_id")), id_of(annotation.get("category_id"))
        if image_id not in self.images:
            self.errors.append(
                RecordError(f"{where}: its image {shown(annotation.get('image_id'))} is not in 'images'")
            )
        elif self._needs_names and category not in self.names:
            found = shown(annotation.get("category_id"))
            self.errors.append(RecordError(f"{where}: its category {found} is not in 'categories'"))
        elif category in self.names and self.names[category].startswith("_"):
            self.left_out["annotations of categories that begin with '_', left out"] += 1
        else:
            annotation["image_id"], annotation["category_id"] = image_id, category
            if "iscrowd" in annotation:
                annotation["iscrowd"] = int(annotation["iscrowd"] is True or id_of(annotation["iscrowd"]) == 1)
            self.annotations_of[image_id].append(annotation)


def listed(errors: Sequence[object]) -> str:
    """Errors in one message: one as it is, of several the first, each on a line."""
    if len(errors) == 1:
        return str(errors[0])
    more = f"\n  … and {len(errors) - SHOWN} more" if len(errors) > SHOWN else ""
    return f"{len(errors)} errors:" + "".join(f"\n  {error}" for error in errors[:SHOWN]) + more


def _is_text(value: Any) -> TypeGuard[str]:
    """Whether it is text that can be written: no blank one, no lone surrogates."""
    return isinstance(value, str) and bool(value.strip()) and not any("\ud800" <= sign <= "\udfff" for sign in value)


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
        UserError: no folder of images, no annotated image, or boxes without masks.
    """
    need_folder(images, "--images")
    annotated = file.annotated()
    notes.update(file.left_out)
    _note_unused(file, annotated, notes)
    folder, own_ids = ImageFolder(images, file.file_names, notes), ids or file.record_ids()
    image_ids = _drawn(file, annotated if chosen is None else chosen, split, notes)

    def make(number: int) -> Undrawn:
        image_id = image_ids[number]
        where = file.where(image_id)
        size = file.size(image_id, where)
        image = read_image(folder, file.images[image_id]["file_name"], where)

        def made(height: int, width: int) -> ImageRecord:
            targets = tuple(targets_of(image_id, height, width))
            if not targets:
                notes["images none of whose masks covers a pixel, left out"] += 1
                raise NothingLeftError(f"{where}: none of its masks covers a pixel")
            return ImageRecord(own_ids[image_id], image, width, height, split, title, targets)

        return Undrawn(where, image, made, size)

    about = {"annotations": file.name, "annotations_sha256": file.sha256, "split": split, **description}
    return RecordSource(str(file.path), len(image_ids), make, about, notes, file.errors)


def _note_unused(file: CocoFile, annotated: Sequence[Any], notes: "Counter[str]") -> None:
    """Counts the images that no record is made of: without annotations, or with boxes alone."""
    bare = [annotations for i in set(file.images) - set(annotated) if (annotations := file.annotations_of.get(i))]
    if unused := len(file.images) - len(annotated) - len(bare):
        notes["images without annotations, left out"] = unused
    if bare:
        notes["images whose annotations have no mask, left out"] = len(bare)
        notes[LEFT_OUT_BARE] += sum(map(len, bare))


def _drawn(file: CocoFile, chosen: Sequence[Any], split: str, notes: "Counter[str]") -> list[Any]:
    """The images that may have a mask with a pixel; in a held-out split all of them."""
    if is_held_out(split):
        return list(chosen)
    kept = [i for i in chosen if any(is_drawn(a.get("segmentation")) for a in file.annotations_of[i])]
    if empty := len(chosen) - len(kept):
        notes["images none of whose polygons has three points, left out"] = empty
    return kept
