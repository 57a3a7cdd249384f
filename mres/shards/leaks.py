"""Finds images of a set that are held-out ones of others: by COCO image id and by perceptual hash.

RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO are made of COCO train2014 images, and so are PACO and much else: what trains
on those and is evaluated on these has seen the answers, unless their images are left out.

Legend: N images of the set, H held-out ones.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mres.errors import UserError
from mres.io.files import bytes_sha256, file_sha256, write_atomically
from mres.io.json_files import read_jsonl
from mres.pixels.picture import open_picture, orientation_of, turned
from mres.records import RecordError
from mres.shards.manifest import MANIFEST_NAME, LeakCheck, Manifest
from mres.shards.reader import ShardSet
from mres.shards.scan import scan_records
from mres.shards.storage import is_remote

LEAKS_NAME = "leaks.jsonl"
# Bits of 64. Re-encoded and resized copies differ in 0 to 4; different photographs hardly ever in fewer than 10.
MAX_DISTANCE = 4
_COCO_ID = re.compile(r"(?<!\d)(\d{12})$")


@dataclass(frozen=True, slots=True)
class Leak:
    """Record `id` of the set shows the image of `held_out_id` in the held-out set; `distance` in bits, None: same COCO id."""

    id: str
    held_out: str
    held_out_id: str
    distance: int | None


@dataclass(frozen=True)
class _Images:
    """Ids, COCO ids (-1: none) and hashes of a set's images."""

    ids: list[str]
    coco_N: np.ndarray
    hash_N: np.ndarray


def coco_id(record_id: str) -> int | None:
    """The COCO image id in a record's id: 581857 for "COCO_train2014_000000581857"; None if it is not one."""
    found = _COCO_ID.search(Path(record_id).stem)
    return int(found[1]) if found else None


def image_hash(image: bytes) -> int:
    """Perceptual hash: the signs of the 8×8 lowest frequencies of the grey image (pHash), 64 bits.

    Of the upright picture, so that sets built before images were turned upright are compared rightly with others.
    """
    import imagehash
    from PIL import Image

    with open_picture(image) as opened:
        orientation = orientation_of(opened, image)
        opened.draft("L", (64, 64))
        grey = opened.convert("L")
    if orientation != 1:
        grey = Image.fromarray(np.ascontiguousarray(turned(np.asarray(grey), orientation)))
    return int(str(imagehash.phash(grey)), 16)


def find_leaks(
    location: str, against: Sequence[str], *, max_distance: int = MAX_DISTANCE, workers: int = 0
) -> Manifest:
    """Compares a set's images with those of held-out sets; lists the leaks in the set and notes the result in its manifest.

    The set's fingerprint does not change: the result says something about its data and is not part of it.

    Raises:
        UserError: no held-out set, the set itself among them, an image that cannot be read, a distance out of range.
    """
    if not 0 <= max_distance <= 16:
        raise UserError(f"--max-distance {max_distance}; allowed: 0 to 16 of 64 bits")
    if is_remote(location):
        raise UserError(f"'{location}' is remote; check it where it lies, before it is uploaded")
    shards = ShardSet(location)
    held_out = {name: ShardSet(name) for name in against}
    if not held_out:
        raise UserError("leakcheck needs at least one held-out set (--against)")
    if twin := next((name for name, other in held_out.items() if other.fingerprint == shards.fingerprint), None):
        raise UserError(f"'{twin}' (--against) is the set itself")
    mine = _images(shards, workers)
    leaks: dict[str, Leak] = {}
    names = {f"{Path(name).name} ({other.fingerprint[:12]})": other for name, other in held_out.items()}
    for name, other in names.items():
        for leak in _compare(mine, _images(other, workers), name, max_distance):
            leaks.setdefault(leak.id, leak)
    sizes = {name: len(other) for name, other in names.items()}
    return _note(shards, *_summary(list(leaks.values()), sizes, max_distance, len(shards)))


def inherited(chosen: Sequence[tuple[ShardSet, frozenset[str]]]) -> tuple[LeakCheck, bytes] | None:
    """What the leak checks of sets say of a view of them: the note and the list; None unless all were checked alike.

    Args:
        chosen: each set, and the ids of its records that are in the view.
    """
    checks = [shards.manifest.leakcheck for shards, _ in chosen]
    first = checks[0]
    if first is None or any(
        c is None or (c.against, c.max_distance) != (first.against, first.max_distance) for c in checks
    ):
        return None
    leaks = [leak for shards, ids in chosen for leak in read_leaks(shards) if leak.id in ids]
    return _summary(leaks, first.against, first.max_distance, sum(len(ids) for _, ids in chosen))


def read_leaks(shards: ShardSet) -> list[Leak]:
    """The leaks that were found in a set.

    Raises:
        UserError: it was not checked, or the list is not the one that was written then.
    """
    found = shards.manifest.leakcheck
    if found is None:
        raise UserError(f"'{shards.location}' was not checked for leaks; run tools/shard.py leakcheck first")
    path = Path(shards.location) / LEAKS_NAME
    if not path.is_file() or file_sha256(path) != found.list_sha256:
        raise UserError(f"'{path}' is not the list that the leak check wrote; run tools/shard.py leakcheck again")
    try:
        return [Leak(**value) for _, value in read_jsonl(path)]
    except TypeError:
        raise UserError(f"'{path}' has lines that are no leaks; run tools/shard.py leakcheck again") from None


def _images(shards: ShardSet, workers: int) -> _Images:
    def hashed(positions: Iterator[int]) -> list[tuple[str, int]]:
        return [_hashed(shards, position) for position in positions]

    label = f"hashing images of {shards.location}"
    pairs = [pair for part in scan_records(shards, hashed, workers=workers, label=label) for pair in part]
    ids = [record_id for record_id, _ in pairs]
    hash_N = np.array([value for _, value in pairs], dtype=np.uint64)
    coco_N = np.array([-1 if (found := coco_id(i)) is None else found for i in ids], dtype=np.int64)
    return _Images(ids, coco_N, hash_N)


def _hashed(shards: ShardSet, position: int) -> tuple[str, int]:
    """Id and perceptual hash of a record."""
    record = shards.read(position)
    try:
        return record.id, image_hash(record.image)
    except (OSError, SyntaxError, ValueError) as error:
        raise RecordError(f"{shards.name(position)}: record {record.id!r}: image cannot be read: {error}") from None


def _compare(mine: _Images, theirs: _Images, name: str, max_distance: int) -> Iterator[Leak]:
    by_coco = {int(c): i for c, i in zip(theirs.coco_N, theirs.ids, strict=True) if c >= 0}
    for row, record_id in enumerate(mine.ids):
        same = by_coco.get(int(mine.coco_N[row]))
        if same is not None:
            yield Leak(record_id, name, same, None)
            continue
        distance_H = np.bitwise_count(theirs.hash_N ^ mine.hash_N[row])
        nearest = int(distance_H.argmin())
        if distance_H[nearest] <= max_distance:
            yield Leak(record_id, name, theirs.ids[nearest], int(distance_H[nearest]))


def _summary(leaks: list[Leak], against: dict[str, int], max_distance: int, images: int) -> tuple[LeakCheck, bytes]:
    """The note on leaks, and the list of them."""
    lines = "".join(json.dumps(asdict(leak), ensure_ascii=False) + "\n" for leak in leaks).encode()
    by_id = sum(leak.distance is None for leak in leaks)
    found = LeakCheck(
        against=against,
        max_distance=max_distance,
        images=images,
        by_id=by_id,
        by_hash=len(leaks) - by_id,
        leaks=len(leaks),
        list_sha256=bytes_sha256(lines),
    )
    return found, lines


def _note(shards: ShardSet, found: LeakCheck, lines: bytes) -> Manifest:
    """Writes list and manifest anew; the list first: a manifest without its list is refused, the other way is harmless."""
    manifest = shards.manifest.model_copy(update={"leakcheck": found})
    folder = Path(shards.location)
    try:
        write_atomically(folder / LEAKS_NAME, lines)
        write_atomically(folder / MANIFEST_NAME, manifest.to_bytes())
    except OSError as error:
        raise UserError(f"cannot write into '{folder}': {error.strerror or error}") from None
    return manifest
