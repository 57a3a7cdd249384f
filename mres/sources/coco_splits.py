"""Which images of a COCO file belong to a split: held out by a hash, listed in a file, or all of them."""

import hashlib
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from mres.errors import UserError, near
from mres.io.files import bytes_sha256, read_regular
from mres.sources.coco_file import SHOWN, CocoFile, listed
from mres.sources.image_folder import name_parts
from mres.sources.reading import id_of

SPLITS = ("train", "val", "test")
_MAX_BYTES = 1 << 28  # of a list of images
_COMPARED = 2000  # names that are compared for a near one


def need_split(split: str) -> None:
    """Raises: UserError: there is no such split."""
    if split not in SPLITS:
        meant = near(split, SPLITS, otherwise="")
        raise UserError(f"unknown split '{split}'; allowed: {', '.join(SPLITS)}{meant and '; ' + meant}")


def held_out_images(file: CocoFile, split: str, val_images: int, test_images: int, seed: int) -> list[Any]:
    """The ids of the annotated images of a split: by a hash the first are of val, the next of test, the others of train.

    Raises:
        UserError: more are to be held out than there are, or none is left.
    """
    annotated = file.annotated()
    if min(val_images, test_images) < 0 or val_images + test_images > len(annotated):
        asked = f"{val_images} images (--val-images)" + (f" and {test_images} (--test-images)" if test_images else "")
        raise UserError(f"cannot hold out {asked}: the file has {len(annotated)} annotated ones")
    by_hash = sorted(annotated, key=lambda image_id: hashlib.sha256(f"{seed}:{image_id}".encode()).digest())
    held_out = dict.fromkeys(by_hash[:val_images], "val") | dict.fromkeys(by_hash[val_images:][:test_images], "test")
    chosen = [image_id for image_id in annotated if held_out.get(image_id, "train") == split]
    if not chosen:
        raise UserError(
            f"the {split} split of '{file.path}' is empty: {len(annotated)} images, {val_images} held out (--val-images), "
            f"{test_images} for test (--test-images); --all-images makes one split of the file, --split-file names its images"
        )
    return chosen


def images_of_list(file: CocoFile, path: Path, notes: "Counter[str]") -> tuple[list[Any], str]:
    """The ids of the annotated images that a file lists, and its SHA-256.

    It has one image a line: its name with or without folders and suffix, or its id. Lines that name no image of the
    annotations are counted in `notes`.

    Raises:
        UserError: it cannot be read, a line stands for several images, or none for any.
    """
    try:
        content = read_regular(path, _MAX_BYTES)
        lines = [line.strip() for line in content.decode("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read '{path}' (--split-file): {getattr(error, 'strerror', None) or error}") from None
    ids_of = _by_name(file)
    found, unknown, ambiguous = set[Any](), list[str](), list[str]()
    for line in lines:
        ids = _named(line, ids_of) or {image_id for image_id in [id_of(line)] if image_id in file.images}
        if len(ids) > 1:
            names = sorted(str(file.images[image_id]["file_name"]) for image_id in ids)
            ambiguous.append(f"{line!r} may be {' or '.join(map(repr, names[:5]))}")
        elif not ids:
            unknown.append(line)
        found |= ids
    if ambiguous or not found:
        known = [file.file_names[:_COMPARED] if number < SHOWN else [] for number in range(len(unknown))]
        meant = [near(line, names, otherwise="") for line, names in zip(unknown, known, strict=True)]
        errors = ambiguous or [
            f"{line!r} names no image; {text}".rstrip("; ") for line, text in zip(unknown, meant, strict=True)
        ]
        raise UserError(f"'{path}' (--split-file) and '{file.path}': {listed(errors or ['it names no image'])}")
    if unknown:
        notes["lines of the split file that name no image of the annotations"] = len(unknown)
    chosen = [image_id for image_id in file.annotated() if image_id in found]
    if not chosen:
        raise UserError(
            f"none of the {len(found)} images that '{path}' (--split-file) lists has a mask in '{file.path}'"
        )
    return chosen, bytes_sha256(content)


def _by_name(file: CocoFile) -> dict[tuple[str, ...], set[Any]]:
    """{last parts of a path, with and without the suffix: the images that have them}."""
    ids_of: dict[tuple[str, ...], set[Any]] = defaultdict(set)
    for image_id, entry in file.images.items():
        parts = name_parts(entry["file_name"])
        without_suffix = (*parts[:-1], Path(parts[-1]).stem)
        for start in range(len(parts)):
            ids_of[parts[start:]].add(image_id)
            ids_of[without_suffix[start:]].add(image_id)
    return ids_of


def _named(line: str, ids_of: dict[tuple[str, ...], set[Any]]) -> set[Any]:
    """The images with the most last parts of the path in a line."""
    parts = name_parts(line)
    return next((ids for start in range(len(parts)) if (ids := ids_of.get(parts[start:]))), set())
