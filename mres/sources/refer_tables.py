"""What RefCOCO's family and gRefCOCO share: a file of refs and one of instances, merged to image records.

A ref is what is said of one object (REFER) or of any number of objects (gRefCOCO) of an image; instances.json is a COCO
file with the objects' masks.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from mres.errors import UserError
from mres.io.files import file_sha256
from mres.records import Expression, ImageRecord, RecordError, Rle, Target
from mres.sources.coco_file import Annotation, CocoFile
from mres.sources.coco_masks import LEFT_OUT_EMPTY, annotation_mask, bounding_box, empty_mask, union
from mres.sources.image_folder import ImageFolder
from mres.sources.reading import JsonFile, image_size, name_of, need_folder, read_image
from mres.sources.refer_counts import Counts
from mres.sources.safe_pickle import load_plain
from mres.sources.source import RecordSource

Id: TypeAlias = int | str
NO_TARGET = "no-target"


@dataclass(frozen=True, slots=True)
class Ref:
    """One entry of a file of refs.

    Attributes:
        id: its `ref_id`, as text.
        annotation_ids: the objects that it refers to; none: it refers to nothing in the image.
        split: as the file says it ("testA", "testAB" …).
        sentences: as in the file; they are read when the record is made.
    """

    id: str
    image_id: Id
    annotation_ids: tuple[Id, ...]
    split: str
    sentences: list[Any]


class RefTables:
    """A file of refs and its instances.json.

    Attributes:
        path: of the refs; name: folder and name of that file, the same on every machine; sha256: of that file.
        refs: all of them, in the file's order.
        file: the instances; annotations: {id: entry}.

    Raises:
        UserError: one of the files cannot be read or is not of its form, or a ref's id occurs twice.
    """

    def __init__(self, refs: Path, instances: Path) -> None:
        if not instances.is_file():
            raise UserError(f"no '{instances.name}' in '{instances.parent}' (--root)")
        self.path, self.name = refs, name_of(refs)
        entries = _read(refs)
        self.sha256 = file_sha256(refs)
        self.refs = [_ref(entry, f"'{refs}': ref number {number}") for number, entry in enumerate(entries)]
        num_of_id = Counter(ref.id for ref in self.refs)
        if twice := next((id_ for id_, num in num_of_id.items() if num > 1), None):
            raise UserError(f"'{refs}': the ref_id {twice} occurs twice")
        self.file = CocoFile(instances, needs_names=False)
        self.annotations: dict[Id, Annotation] = {
            annotation["id"]: annotation for found in self.file.annotations_of.values() for annotation in found
        }

    def mismatch(self, ref: Ref) -> str | None:
        """What a ref names that the instances do not have."""
        if ref.image_id not in self.file.images:
            return f"its image {ref.image_id!r} is not there"
        for id_ in ref.annotation_ids:
            annotation = self.annotations.get(id_)
            if annotation is None:
                return f"its annotation {id_!r} is not there"
            if annotation["image_id"] != ref.image_id:
                return f"its image is {ref.image_id!r}, that of its annotation {id_!r} is {annotation['image_id']!r}"
            if annotation["category_id"] not in self.file.names:
                return f"the category {annotation['category_id']!r} of its annotation {id_!r} is not there"
        return None


def folder_of(root: Path, data_set: str) -> Path:
    """The folder of a data set below `root`. Raises: UserError, saying what is there instead."""
    folder = root / data_set
    if folder.is_dir():
        return folder
    if not root.is_dir():
        raise UserError(f"no folder at '{root}' (--root)")
    if (root / "instances.json").exists():
        raise UserError(
            f"'{root}' (--root) has an instances.json itself; give the folder above, with '{data_set}' in it"
        )
    there = ", ".join(sorted(place.name for place in root.iterdir() if place.is_dir())) or "none"
    raise UserError(f"no folder '{data_set}' in '{root}' (--root); folders there: {there}")


def refs_of_split(
    tables: RefTables, split: str, is_of_split: Callable[[str, str], bool], notes: "Counter[str]"
) -> list[Ref]:
    """The refs whose field `split` belongs to a split, by is_of_split(field, split). Raises: UserError, if none does."""
    chosen = [ref for ref in tables.refs if is_of_split(ref.split, split)]
    if not chosen:
        there = ", ".join(f"{name} ({num})" for name, num in Counter(ref.split for ref in tables.refs).items())
        raise UserError(f"'{tables.path}' has no ref of the split '{split}' (--split); its refs: {there}")
    if others := len(tables.refs) - len(chosen):
        notes[f"refs of other splits than '{split}', left out"] = others
    return chosen


def count(refs: Sequence[Ref]) -> Counts:
    return Counts(len(refs), sum(len(ref.sentences) for ref in refs))


def ref_source(
    tables: RefTables,
    refs: Sequence[Ref],
    images: Path,
    *,
    split: str,
    title: str,
    description: dict[str, Any],
    notes: "Counter[str]",
) -> RecordSource:
    """One record for each image that is referred to, in the order of the instances' file.

    Args:
        tables: both files.
        refs: those of the split.
        images: the folder of the images.
        split, title: the records' `split` and `source`.
        description: the format's own part of the description.
        notes: what the format has left out already.

    Raises:
        UserError: no folder of images, or refs that do not match the instances.
    """
    need_folder(images, "--images")
    _refuse_mismatch(tables, refs)
    if astray := len(tables.file.errors):
        notes["annotations of instances.json without an image or a category, left out"] = astray
    file, ids = tables.file, tables.file.record_ids()
    folder = ImageFolder(images, file.file_names, notes)
    refs_of: dict[Id, list[Ref]] = defaultdict(list)
    for ref in refs:
        refs_of[ref.image_id].append(ref)
    image_ids = [image_id for image_id in file.images if image_id in refs_of]

    def make(number: int) -> ImageRecord:
        image_id = image_ids[number]
        where = file.where(image_id)
        size = file.size(image_id, where)
        image = read_image(folder, file.images[image_id]["file_name"], where)
        height, width = size or image_size(image, where)
        targets = tuple(_targets(tables, refs_of[image_id], height, width, notes))
        if not targets:
            raise RecordError(f"{where}: none of its {len(refs_of[image_id])} refs has a mask and an expression")
        return ImageRecord(ids[image_id], image, width, height, split, title, targets)

    about = {
        **description,
        "refs": tables.name,
        "refs_sha256": tables.sha256,
        "instances": file.name,
        "instances_sha256": file.sha256,
        "split": split,
    }
    return RecordSource(str(tables.path), len(image_ids), make, about, notes)


def _read(path: Path) -> list[Any]:
    value = JsonFile.read(path).value if path.suffix == ".json" else load_plain(path)
    if not isinstance(value, list) or not value:
        raise UserError(f"'{path}' is no file of refs: found {_shown(value)}, expected a list of refs")
    return value


def _ref(entry: Any, where: str) -> Ref:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: found {_shown(entry)}, expected a dictionary with 'ref_id', 'ann_id', 'image_id' …")
    annotation_ids = entry.get("ann_id")
    if not isinstance(annotation_ids, list):
        annotation_ids = [annotation_ids]
    checks = (
        ("ref_id", _is_id(entry.get("ref_id")), "a whole number"),
        ("image_id", _is_id(entry.get("image_id")), "a whole number"),
        ("ann_id", annotation_ids and all(map(_is_id, annotation_ids)), "the number of an annotation, or several"),
        ("split", isinstance(entry.get("split"), str), "text"),
        ("sentences", isinstance(entry.get("sentences"), list), "a list"),
    )
    for field, is_good, expected in checks:
        if not is_good:
            raise UserError(f"{where}: field '{field}': found {_shown(entry.get(field))}, expected {expected}")
    return Ref(str(entry["ref_id"]), entry["image_id"], tuple(annotation_ids), entry["split"], entry["sentences"])


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:60]!r}"


def _refuse_mismatch(tables: RefTables, refs: Sequence[Ref]) -> None:
    wrong = [(ref, mismatch) for ref in refs if (mismatch := tables.mismatch(ref))]
    if wrong:
        ref, mismatch = wrong[0]
        raise UserError(
            f"'{tables.path}' does not match '{tables.file.path}': {len(wrong)} of {len(refs)} refs name what is not in "
            f"it; the first, ref {ref.id}: {mismatch}. Take both files from the same release"
        )


def _targets(tables: RefTables, refs: list[Ref], height: int, width: int, notes: "Counter[str]") -> Iterator[Target]:
    for ref in refs:
        expressions = tuple(_expressions(ref, tables.path, notes))
        if not expressions:
            notes["refs without expressions, left out"] += 1
            continue
        if not ref.annotation_ids:
            yield Target(ref.id, "object", NO_TARGET, empty_mask(height, width), (0.0, 0.0, 0.0, 0.0), expressions)
        elif masks := list(_masks(tables, ref, height, width, notes)):
            mask = union(masks)
            ids = {tables.annotations[id_]["category_id"] for id_ in ref.annotation_ids}
            category = "+".join(sorted(tables.file.names[id_] for id_ in ids))
            yield Target(ref.id, "object", category, mask, bounding_box(mask), expressions)


def _masks(tables: RefTables, ref: Ref, height: int, width: int, notes: "Counter[str]") -> Iterator[Rle]:
    for id_ in ref.annotation_ids:
        annotation = tables.annotations[id_]
        where = tables.file.where(ref.image_id, annotation)
        for segmentation in _segmentations(annotation.get("segmentation")):
            if mask := annotation_mask(segmentation, height, width, where, notes):
                yield mask
            else:
                notes[LEFT_OUT_EMPTY] += 1


def _expressions(ref: Ref, path: Path, notes: "Counter[str]") -> Iterator[Expression]:
    for number, sentence in enumerate(ref.sentences):
        if text := _text(sentence, f"{path}: ref {ref.id}, sentence {number}", notes):
            yield Expression(text)


def _segmentations(segmentation: Any) -> list[Any]:
    """RefCLEF has a list of run lengths, which no other set has; the rest is COCO's."""
    if isinstance(segmentation, list) and segmentation and all(isinstance(one, dict) for one in segmentation):
        return segmentation
    return [segmentation]


def _text(sentence: Any, where: str, notes: "Counter[str]") -> str | None:
    """The cleaned text of a sentence, which is what the field evaluates; the text as typed only where that is missing."""
    texts = [sentence.get(field) for field in ("sent", "raw")] if isinstance(sentence, dict) else [None]
    if not all(isinstance(text, str) or text is None for text in texts) or texts == [None] * len(texts):
        raise RecordError(f"{where}: found {_shown(sentence)}, expected text under 'sent', or under 'raw'")
    sent, raw = ((text or "").strip() for text in texts)
    if sent:
        return sent
    notes["sentences without 'sent', taken from 'raw'" if raw else "blank sentences, left out"] += 1
    return raw or None
