"""Refs and instances (`refer_tables.py`) to image records: masks joined, sentences read, what is left out counted."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from mres.errors import shown
from mres.pixels.picture import read_header
from mres.record_checks import is_source_id
from mres.records import MAX_EXPRESSION_CHARACTERS, Expression, ImageRecord, RecordError, Rle, SourceId, Target
from mres.sources.coco_masks import (
    KEPT_EMPTY,
    LEFT_OUT_EMPTY,
    MaskSizeError,
    annotation_mask,
    bounding_box,
    empty_mask,
    is_held_out,
    union,
)
from mres.sources.image_folder import ImageFolder
from mres.sources.reading import misfit_of, need_folder, read_image
from mres.sources.refer_tables import Ref, RefTables, matched
from mres.sources.source import CheckKept, NothingLeftError, RecordSource, Undrawn

Text: TypeAlias = Literal["sent", "raw"]
TEXTS: tuple[Text, ...] = ("sent", "raw")
BLANK = "blank sentences, left out"


def ref_source(
    tables: RefTables,
    refs: list[Ref],
    errors: list[RecordError],
    images: Path,
    *,
    split: str,
    title: str,
    text: Text,
    description: dict[str, Any],
    check_kept: CheckKept,
    notes: "Counter[str]",
) -> RecordSource:
    """One record for each image that is referred to, in the order of the instances' file.

    Args:
        tables: both files.
        refs, errors: those of the split.
        images: the folder of the images.
        split, title: the records' `split` and `source`.
        text: which of a sentence's texts is taken.
        description: the format's own part of the description.
        check_kept: told how many targets and expressions are left at the end.
        notes: what the format has left out already.

    Raises:
        UserError: no folder of images, or refs that do not match the instances.
    """
    need_folder(images, "--images")
    refs = matched(tables, refs, errors)
    if astray := len(tables.file.errors):
        notes["entries of instances.json that no ref can name (no image, an id twice …), left out"] = astray
    file, ids = tables.file, tables.file.record_ids()
    folder = ImageFolder(images, file.file_names, notes)
    refs_of: dict[SourceId, list[Ref]] = defaultdict(list)
    for ref in refs:
        refs_of[ref.image_id].append(ref)
    image_ids = [image_id for image_id in file.images if image_id in refs_of]
    refused: list[str] = []
    reader = _TargetReader(tables, text, notes, refused, keeps_empty=is_held_out(split))

    def make(number: int) -> Undrawn:
        image_id = image_ids[number]
        where = file.where(image_id)
        size = file.size(image_id, where)
        image = read_image(folder, file.images[image_id]["file_name"], where)

        def made(height: int, width: int) -> ImageRecord:
            misfits: list[MaskSizeError] = []
            targets = tuple(reader.targets(refs_of[image_id], height, width, misfits))
            if misfits and size is None:
                raise misfits[0]
            refused.extend(str(misfit_of(error, read_header(image))) for error in misfits)
            if not targets:
                notes["images none of whose refs is left, left out"] += 1
                raise NothingLeftError(
                    f"{where}: none of its {len(refs_of[image_id])} refs has a mask and an expression"
                )
            return ImageRecord(ids[image_id], image, width, height, split, title, targets)

        return Undrawn(where, image, made, size)

    about = {
        **description,
        **({} if text == "sent" else {"text": text}),
        "refs": tables.name,
        "refs_sha256": tables.sha256,
        "instances": file.name,
        "instances_sha256": file.sha256,
        "split": split,
    }
    name = str(tables.path)
    return RecordSource(name, len(image_ids), make, about, notes, errors, check_kept=check_kept, refused=refused)


class _TargetReader:
    """Refs of one image to targets. What is damaged costs its ref, or its sentence, and goes into `refused`."""

    def __init__(
        self, tables: RefTables, text: Text, notes: "Counter[str]", refused: list[str], *, keeps_empty: bool
    ) -> None:
        self._tables, self._text, self._notes, self._refused = tables, text, notes, refused
        self._keeps_empty = keeps_empty

    def targets(self, refs: Sequence[Ref], height: int, width: int, misfits: list[MaskSizeError]) -> Iterator[Target]:
        """Masks of another size go into `misfits`: the size may not be the one that they were drawn in."""
        for ref in refs:
            expressions = tuple(self._expressions(ref))
            if not expressions:
                self._notes["refs without expressions, left out"] += 1
                continue
            try:
                mask = empty_mask(height, width) if ref.no_target else self._mask(ref, height, width)
            except MaskSizeError as error:
                misfits.append(MaskSizeError(f"{error} (ref {ref.id})"))
                continue
            except RecordError as error:
                self._refused.append(f"{error} (ref {ref.id})")
                continue
            if mask is not None:
                yield Target(
                    id=str(ref.id),
                    granularity="object",
                    category="" if ref.no_target else self._category(ref),
                    mask=mask,
                    box=bounding_box(mask),
                    expressions=expressions,
                    ref_id=ref.id,
                    ann_id=ref.ann_id,
                    no_target=ref.no_target,
                )

    def _mask(self, ref: Ref, height: int, width: int) -> Rle | None:
        """The union of its objects'; None where that has no pixel and nothing is to be learned from it."""
        found = []
        for id_ in ref.annotation_ids:
            annotation = self._tables.annotations[id_]
            where = self._tables.file.where(ref.image_id, annotation)
            found.append(annotation_mask(annotation.get("segmentation"), height, width, where, self._notes))
        masks = [mask for mask in found if mask is not None]
        if masks:
            if len(masks) < len(found):
                self._notes["objects without a pixel, left out of what their ref means"] += len(found) - len(masks)
            return union(masks)
        self._notes[KEPT_EMPTY if self._keeps_empty else LEFT_OUT_EMPTY] += 1
        return empty_mask(height, width) if self._keeps_empty else None

    def _category(self, ref: Ref) -> str:
        """The objects' category, of several joined; by its number where the file does not name it."""
        listed = ref.ann_id if isinstance(ref.ann_id, tuple) else (ref.ann_id,)
        ids = {self._tables.annotations[id_]["category_id"] for id_ in ref.annotation_ids or listed}
        if ids - self._tables.file.names.keys():
            self._notes["refs whose category instances.json does not name, called by its number"] += 1
        return "+".join(sorted(self._tables.file.names.get(id_, f"category {id_}") for id_ in ids))

    def _expressions(self, ref: Ref) -> Iterator[Expression]:
        for number, sentence in enumerate(ref.sentences):
            where = f"{self._tables.path}: ref {ref.id}, sentence {number}"
            try:
                text = self._text_of(sentence, where)
            except RecordError as error:
                self._refused.append(str(error))
                continue
            if text:
                sent_id = sentence.get("sent_id")
                yield Expression(text, "", sent_id if is_source_id(sent_id) else None, number)
            else:
                self._notes[BLANK] += 1

    def _text_of(self, sentence: Any, where: str) -> str:
        """The text that is asked for, or, where that is missing, the other; blank where it is blank. Raises: RecordError."""
        fields = sorted(TEXTS, key=lambda field: field != self._text)
        texts = [sentence.get(field) for field in fields] if isinstance(sentence, dict) else [None]
        if not all(isinstance(text, str) or text is None for text in texts) or texts == [None] * len(texts):
            raise RecordError(f"{where}: found {shown(sentence)}, expected text under 'sent', or under 'raw'")
        taken = next(text for text in texts if text is not None).strip()
        if len(taken) > MAX_EXPRESSION_CHARACTERS or not is_source_id(taken):
            raise RecordError(
                f"{where}: found {shown(taken)}, expected text of up to {MAX_EXPRESSION_CHARACTERS} characters"
            )
        if texts[0] is None:
            self._notes[f"sentences without '{fields[0]}', taken from '{fields[1]}'"] += 1
        return taken
