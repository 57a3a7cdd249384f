"""What RefCOCO's family and gRefCOCO share: a file of refs and one of instances, checked against each other.

A ref is what is said of one object (REFER) or of any number of objects (gRefCOCO) of an image; instances.json is a COCO
file with the objects' masks. Records are made of them in `refer_records.py`.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mres.errors import UserError, shown
from mres.io.files import file_sha256
from mres.record_checks import is_source_id
from mres.records import RecordError, SourceId
from mres.sources.coco_file import Annotation, CocoFile
from mres.sources.reading import JsonFile, id_of, name_of
from mres.sources.safe_pickle import load_plain


@dataclass(frozen=True, slots=True)
class Ref:
    """One entry of a file of refs.

    Attributes:
        id: its `ref_id`.
        ann_id: as in the file: the id of an object, or of several.
        annotation_ids: the objects that make its mask.
        split: as the file says it ("testA", "testAB" …).
        sentences: as in the file; they are read when the record is made.
        no_target: it refers to nothing in the image.
    """

    id: SourceId
    image_id: SourceId
    ann_id: SourceId | tuple[SourceId, ...]
    annotation_ids: tuple[SourceId, ...]
    split: str
    sentences: list[Any]
    no_target: bool = False


class RefTables:
    """A file of refs and its instances.json.

    Attributes:
        path: of the refs; name: folder and name of that file, the same on every machine; sha256: of that file.
        refs: all that can be used, in the file's order; errors: what is wrong with each of the others, and its split.
        file: the instances; annotations: {id: entry}.

    Raises:
        UserError: one of the files cannot be read or is not of its form.
    """

    def __init__(self, refs: Path, instances: Path) -> None:
        if not instances.is_file():
            raise UserError(f"no '{instances.name}' in '{instances.parent}' (--root)")
        self.path, self.name = refs, name_of(refs)
        entries = _read(refs)
        self.sha256 = file_sha256(refs)
        self.refs: list[Ref] = []
        self.errors: list[tuple[Any, RecordError]] = []
        number_of: dict[SourceId, int] = {}
        for number, entry in enumerate(entries):
            where = f"'{refs}': ref number {number}"
            try:
                ref = _ref(entry, where)
                if (before := number_of.setdefault(ref.id, number)) != number:
                    twice = f"the ref_id {ref.id!r} occurs twice, before in ref number {before}"
                    raise RecordError(f"{where}: {twice}")
                self.refs.append(ref)
            except RecordError as error:
                self.errors.append((entry.get("split") if isinstance(entry, dict) else None, error))
        if not self.refs:
            raise UserError(str(self.errors[0][1]))
        self.file = CocoFile(instances, needs_names=False)
        self.annotations: dict[SourceId, Annotation] = {
            annotation["id"]: annotation for found in self.file.annotations_of.values() for annotation in found
        }

    def mismatch(self, ref: Ref) -> str | None:
        """What a ref names that the instances do not have."""
        if ref.image_id not in self.file.images:
            return f"its image {shown(ref.image_id)} is not there"
        for id_ in ref.annotation_ids:
            annotation = self.annotations.get(id_)
            if annotation is None:
                return f"its annotation {shown(id_)} is not there"
            if annotation["image_id"] != ref.image_id:
                return f"its image is {shown(ref.image_id)}, that of its annotation {shown(id_)} is {shown(annotation['image_id'])}"
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
) -> tuple[list[Ref], list[RecordError]]:
    """The refs whose field `split` belongs to a split, by is_of_split(field, split), and the errors of such.

    Raises:
        UserError: none does.
    """
    chosen = [ref for ref in tables.refs if is_of_split(ref.split, split)]
    if not chosen:
        there = ", ".join(f"{name} ({num})" for name, num in Counter(ref.split for ref in tables.refs).items())
        raise UserError(f"'{tables.path}' has no ref of the split '{split}' (--split); its refs: {there}")
    if others := len(tables.refs) - len(chosen):
        notes[f"refs of other splits than '{split}', left out"] = others
    errors = [error for found, error in tables.errors if not isinstance(found, str) or is_of_split(found, split)]
    return chosen, errors


def matched(tables: RefTables, refs: list[Ref], errors: list[RecordError]) -> list[Ref]:
    """The refs that name what the instances have; the others are added to `errors`.

    Raises:
        UserError: most do not, so these are files of different releases.
    """
    good, wrong = [], []
    for ref in refs:
        if mismatch := tables.mismatch(ref):
            wrong.append(f"ref {ref.id}: {mismatch}")
        else:
            good.append(ref)
    if 2 * len(wrong) > len(refs):
        raise UserError(
            f"'{tables.path}' does not match '{tables.file.path}': {len(wrong)} of {len(refs)} refs name what is not in "
            f"it; the first, {wrong[0]}. Take both files from the same release"
        )
    where = f"'{tables.path}' does not match '{tables.file.path}'"
    errors += [RecordError(f"{where}: {text}; are both files of one release?") for text in wrong]
    return good


def _read(path: Path) -> list[Any]:
    value = JsonFile.read(path).value if path.suffix == ".json" else load_plain(path)
    if not isinstance(value, list) or not value:
        raise UserError(f"'{path}' is no file of refs: found {shown(value)}, expected a list of refs")
    return value


def _ref(entry: Any, where: str) -> Ref:
    """Raises: RecordError."""
    if not isinstance(entry, dict):
        raise RecordError(f"{where}: found {shown(entry)}, expected a dictionary with 'ref_id', 'ann_id', 'image_id' …")
    ref_id, image_id = (_id(entry.get(field)) for field in ("ref_id", "image_id"))
    listed = entry.get("ann_id")
    ids = tuple(_id(value) for value in (listed if isinstance(listed, list | tuple) else [listed]))
    annotation_ids = tuple(id_ for id_ in ids if id_ is not None)
    split, sentences = entry.get("split"), entry.get("sentences")
    checks = (
        ("ref_id", ref_id is not None, "a whole number"),
        ("image_id", image_id is not None, "a whole number"),
        ("ann_id", ids and len(annotation_ids) == len(ids), "the number of an annotation, or several"),
        ("split", isinstance(split, str), "text"),
        ("sentences", isinstance(sentences, list), "a list"),
    )
    for field, is_good, expected in checks:
        if not is_good:
            raise RecordError(f"{where}: field '{field}': found {shown(entry.get(field))}, expected {expected}")
    assert ref_id is not None and image_id is not None and isinstance(split, str) and isinstance(sentences, list)  # noqa: PT018
    ann_id = annotation_ids if isinstance(listed, list | tuple) else annotation_ids[0]
    return Ref(ref_id, image_id, ann_id, annotation_ids, split, sentences)


def _id(value: Any) -> SourceId | None:
    """An id, by which entries of both files are compared; None for what is none."""
    id_ = id_of(value)
    return id_ if is_source_id(id_) else None
