"""InstructPart (parts that an instruction asks for, masks as pictures) to image records."""

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeGuard

from mres.errors import UserError
from mres.records import Expression, ImageRecord, RecordError, Target
from mres.sources.coco_expressions import noun_of
from mres.sources.coco_file import listed
from mres.sources.coco_masks import KEPT_EMPTY, LEFT_OUT_EMPTY, EmptyMaskError, empty_mask, is_held_out
from mres.sources.image_folder import ImageFolder, plain_path
from mres.sources.mask_files import read_mask
from mres.sources.object_parts import make_target
from mres.sources.reading import JsonFile, add_paths, image_file, in_size_of_masks, need_folder
from mres.sources.source import NothingLeftError, RecordSource

# Of the six texts of a part the last two are names ("handle of the cup", "handle of the cup that can be held").
_KINDS = ("instruction", "instruction", "instruction", "instruction", "category", "category")
_SUFFIXES = (".jpg", ".png")


def instructpart(annotations: Path, images: Path | None, masks: Path | None, split: str) -> RecordSource:
    """The image records of one `data_*.json` of InstructPart.

    Args:
        annotations: the JSON, a list of {image_path, part_list}.
        images: the folder of its images, under `image_path` or the name of a mask; None: `images` beside the JSON.
        masks: the folder of its masks, `<image>-<object>-<part>.jpg` or `.png`; None: `masks` beside the JSON.
        split: the name that the records carry.

    Raises:
        UserError: not such a file, no such folder. What is wrong with one record comes out of the iteration as a
            `RecordError`; entries that cannot be used, as one of an image that another entry has, come first.
    """
    images, masks = images or annotations.parent / "images", masks or annotations.parent / "masks"
    need_folder(images, "--images")
    need_folder(masks, "--masks")
    file = JsonFile.read(annotations)
    entries, errors = _entries(file)
    notes: Counter[str] = Counter()
    folder = ImageFolder(images, [entry["image_path"] for entry in entries], notes)
    description = {
        "format": "instructpart",
        "annotations": file.name,
        "annotations_sha256": file.sha256,
        "split": split,
    }

    def make(number: int) -> ImageRecord:
        entry = entries[number]
        stem = plain_path(entry["image_path"]).stem
        where = f"{annotations}: image '{entry['image_path']}'"
        parts = _parts(entry["part_list"], where)
        image = image_file(_place(folder, images, entry["image_path"], parts, where), where)

        def made(height: int, width: int) -> ImageRecord:
            found = _targets(masks, stem, parts, height, width, where, notes, held_out=is_held_out(split))
            targets = tuple(found)
            if not targets:
                notes["images none of whose masks covers a pixel, left out"] += 1
                raise NothingLeftError(f"{where}: none of its masks covers a pixel")
            return ImageRecord(stem, image, width, height, split, "instructpart", targets)

        return in_size_of_masks(image, where, made)

    return RecordSource(str(annotations), len(entries), make, description, notes, errors)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_paths(parser, ("--annotations", "FILE", "data_train.json …"))
    parser.add_argument("--images", type=Path, metavar="DIR", help="the folder of its images, if not images/ beside it")
    parser.add_argument("--masks", type=Path, metavar="DIR", help="the folder of its masks, if not masks/ beside it")
    parser.add_argument("--split", default="train", metavar="NAME", help="what the records are labelled as")


def _entries(file: JsonFile) -> tuple[list[dict[str, Any]], list[RecordError]]:
    """The entries that have an image of their own, and the errors of the others."""
    annotations, entries = file.path, file.value
    form = "a list of {'image_path', 'part_list'}"
    if not isinstance(entries, list) or not entries:
        raise UserError(f"'{annotations}' is not InstructPart's: expected {form}, found {type(entries).__name__}")
    seen: dict[str, int] = {}
    good, errors = [], []
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict) or not _is_text(entry.get("image_path")) or "part_list" not in entry:
            errors.append(RecordError(f"{annotations}: [{position}] is not of the form {form}"))
            continue
        stem = plain_path(entry["image_path"]).stem
        if stem in seen:
            errors.append(RecordError(f"{annotations}: [{seen[stem]}] and [{position}] both have the image '{stem}'"))
            continue
        seen[stem] = position
        good.append(entry)
    if not good:
        raise UserError(f"'{annotations}' is not InstructPart's: {listed(errors)}")
    return good, errors


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and not any("\ud800" <= sign <= "\udfff" for sign in value)


def _is_name(value: Any) -> TypeGuard[str]:
    """Masks are found by it, so it must not lead elsewhere."""
    return _is_text(value) and "/" not in value and bool(noun_of(value))


def _place(folder: ImageFolder, images: Path, image_path: str, parts: Iterable[tuple[str, str]], where: str) -> Path:
    """Published under its own name; the authors' code looks for it under its mask's."""
    names = [f"{_file_stem(plain_path(image_path).stem, *key)}.jpg" for key in parts]
    try:
        return folder.find(image_path, where)
    except RecordError:
        if place := next((images / name for name in names if (images / name).is_file()), None):
            return place
        raise


def _targets(
    masks: Path,
    stem: str,
    parts: dict[tuple[str, str], list[Expression]],
    height: int,
    width: int,
    where: str,
    notes: "Counter[str]",
    *,
    held_out: bool,
) -> Iterator[Target]:
    for (owner, part), expressions in parts.items():
        name = _file_stem(stem, owner, part)
        places = [masks / f"{name}{suffix}" for suffix in _SUFFIXES]
        place = next((place for place in places if place.is_file()), places[0])
        try:
            mask = read_mask(place, height, width, f"{where}, {part} of {owner}", notes)
        except EmptyMaskError:
            notes[KEPT_EMPTY if held_out else LEFT_OUT_EMPTY] += 1
            if not held_out:
                continue
            mask = empty_mask(height, width)
        category = f"{noun_of(owner)}:{noun_of(part)}"
        yield make_target(f"{owner}:{part}", "part", category, mask, tuple(dict.fromkeys(expressions)))


def _parts(part_list: Any, where: str) -> dict[tuple[str, str], list[Expression]]:
    """{(object, part): its expressions}; a part that is listed twice has one mask and all texts."""
    if not isinstance(part_list, list) or not part_list:
        raise RecordError(f"{where}: field 'part_list' is {part_list!r}, expected a list of at least one part")
    parts: dict[tuple[str, str], list[Expression]] = {}
    for item in part_list:
        item = item if isinstance(item, dict) else {}
        owner, part, texts = item.get("object"), item.get("part"), item.get("instruction")
        if not _is_name(owner) or not _is_name(part):
            raise RecordError(f"{where}: fields 'object' and 'part' are {owner!r} and {part!r}, expected two names")
        if not isinstance(texts, list) or not texts or not all(_is_text(text) for text in texts):
            raise RecordError(f"{where}, {part}: field 'instruction' is {texts!r}, expected a list of texts")
        kinds = _KINDS if len(texts) == len(_KINDS) else ("instruction",) * len(texts)
        found = parts.setdefault((owner, part), [])
        found += [Expression(text.strip(), kind) for text, kind in zip(texts, kinds, strict=True)]
    return parts


def _file_stem(stem: str, owner: str, part: str) -> str:
    return "-".join([stem, owner.replace(" ", "_"), part.replace(" ", "_")])
