"""Held-out images are found by COCO id and by what they look like; the result stays with the set."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_records import make_record
from PIL import Image, ImageDraw

from mres.errors import UserError
from mres.records import ImageRecord, encode_mask
from mres.shards.leaks import coco_id, find_leaks, image_hash, read_leaks
from mres.shards.reader import ShardSet
from mres.shards.view import Condition, filter_set, merge_sets


def picture(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """A photograph's stand-in: large shapes on a gradient."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:240, :320]
    angle = random.uniform(0, 6.3)
    grey = 128 + 100 * np.sin((x * np.cos(angle) + y * np.sin(angle)) / random.uniform(30, 120))
    image = Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    for _ in range(6):
        x0, y0 = random.integers(0, 250), random.integers(0, 180)
        box = (x0, y0, x0 + random.integers(30, 120), y0 + random.integers(30, 100))
        ImageDraw.Draw(image).ellipse(box, fill=tuple(int(c) for c in random.integers(0, 256, 3)))
    return image.resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, suffix: str = "JPEG", **options) -> bytes:
    with io.BytesIO() as buffer:
        image.save(buffer, suffix, **options)
        return buffer.getvalue()


def record(name: str, image: bytes) -> ImageRecord:
    """A record of the image: its mask and expressions do not matter here."""
    width, height = Image.open(io.BytesIO(image)).size
    template = make_record(0)
    mask = replace(template.targets[0].mask, height=height, width=width)

    mask = encode_mask(np.eye(height, width, dtype=np.uint8))
    targets = tuple(replace(target, mask=mask) for target in template.targets)
    return replace(template, id=name, image=image, width=width, height=height, targets=targets)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("COCO_train2014_000000581857", 581857),
        ("train2017/000000000009.jpg", 9),
        ("000000581857", 581857),
        ("objects365_v1_00000042", None),
        ("1234567890123", None),
        ("n02835271_1028", None),
    ],
)
def test_coco_ids(name: str, found: int | None) -> None:
    assert coco_id(name) == found


def test_hashes_of_copies_are_near_and_of_others_far() -> None:
    originals = [image_hash(encoded(picture(seed))) for seed in range(40)]
    for seed in range(40):
        copies = [
            encoded(picture(seed), quality=40),
            encoded(picture(seed, (160, 120))),
            encoded(picture(seed, (640, 480)), "PNG"),
        ]
        for copy in copies:
            assert (image_hash(copy) ^ originals[seed]).bit_count() <= 4
    distances = [(a ^ b).bit_count() for i, a in enumerate(originals) for b in originals[:i]]
    assert min(distances) > 6


@pytest.fixture
def sets(tmp_path: Path, write_set) -> tuple[str, str]:
    """A training set of which im0 has a held-out COCO id, and im1 is a smaller copy of a held-out image."""
    held_out = [
        record("COCO_train2014_000000000007", encoded(picture(100))),
        record("COCO_train2014_000000000008", encoded(picture(101))),
    ]
    train = [
        record("000000000007", encoded(picture(0))),
        record("copy", encoded(picture(101, (160, 120)), quality=60)),
        *(record(f"other{i}", encoded(picture(i))) for i in range(1, 6)),
    ]
    write_set(tmp_path / "val", held_out)
    write_set(tmp_path / "train", train)
    return str(tmp_path / "train"), str(tmp_path / "val")


@pytest.mark.parametrize("workers", [0, 2])
def test_leaks_are_found_listed_noted_and_left_out(workers: int, sets: tuple[str, str], tmp_path: Path) -> None:
    train, val = sets
    before = ShardSet(train).fingerprint
    found = find_leaks(train, [val], workers=workers).leakcheck
    assert found is not None
    assert (found.images, found.by_id, found.by_hash, found.leaks) == (7, 1, 1, 2)
    assert found.against == {f"val ({ShardSet(val).fingerprint[:12]})": 2}
    lines = [json.loads(line) for line in (tmp_path / "train/leaks.jsonl").read_text().splitlines()]
    assert [(line["id"], line["held_out_id"]) for line in lines] == [
        ("000000000007", "COCO_train2014_000000000007"),
        ("copy", "COCO_train2014_000000000008"),
    ]
    assert lines[0]["distance"] is None
    assert lines[1]["distance"] <= 4
    shards = ShardSet(train)
    assert shards.fingerprint == before, "a checkpoint of a run on this set still fits"
    assert shards.manifest.leakcheck == found
    manifest = filter_set(tmp_path / "clean", train, Condition(drop_leaks=True))
    assert manifest.counts.images == 5
    kept = manifest.leakcheck
    assert kept is not None, "what was found of a set holds for a view of it"
    assert (kept.images, kept.leaks, kept.against) == (5, 0, found.against)
    some = filter_set(tmp_path / "some", train, Condition(ids=frozenset({"copy", "other1"}))).leakcheck
    assert (some.images, some.by_id, some.by_hash) == (2, 0, 1)
    assert [leak.id for leak in read_leaks(ShardSet(tmp_path / "some"))] == ["copy"]
    merged = merge_sets(tmp_path / "merged", [str(tmp_path / "clean"), str(tmp_path / "val")]).leakcheck
    assert merged is None, "one of them was not checked"
    assert find_leaks(str(tmp_path / "clean"), [val]).leakcheck.leaks == 0


def test_a_changed_list_is_not_believed(sets: tuple[str, str], tmp_path: Path) -> None:
    find_leaks(sets[0], [sets[1]])
    (tmp_path / "train/leaks.jsonl").write_text("")
    with pytest.raises(UserError, match="is not the list that the leak check wrote"):
        read_leaks(ShardSet(sets[0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"against": []}, "needs at least one held-out set"),
        ({"max_distance": 17}, "--max-distance 17; allowed: 0 to 16"),
        ({"against": ["TRAIN"]}, "is the set itself"),
        ({"location": "s3://bucket/set"}, "is remote"),
        ({"against": ["nowhere"]}, "no shard set at 'nowhere'"),
    ],
)
def test_a_check_that_cannot_be_is_refused(change: dict, message: str, sets: tuple[str, str]) -> None:
    arguments = {"location": sets[0], "against": [sets[1]], **change}
    arguments["against"] = [sets[0] if name == "TRAIN" else name for name in arguments["against"]]
    with pytest.raises(UserError, match=message):
        find_leaks(arguments.pop("location"), **arguments)
