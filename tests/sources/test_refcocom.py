"""RefCOCOm: parts told from objects, folders under another case, and what broken benchmarks are told."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from made_cris import entry, write_pictures

from mres.errors import UserError
from mres.records import RecordError
from mres.sources import registry
from mres.sources.refcocom import refcocom

A, B = "COCO_train2014_000000000009.jpg", "COCO_train2014_000000000025.jpg"
PARTS = [
    entry(501, A, "head of the left dog", cat=3, part="head"),
    {"img_name": B, "segment_id": "502", "sentences": ["her left arm", "arm"], "bbox": [1, 1, 5, 4]},
]
OBJECTS = [entry(12, A, "left dog", cat=16, box=(0, 0, 6, 6))]


def write(root: Path, files: dict[str, Any], annotations: str = "annotations", masks: str = "masks") -> Path:
    (root / annotations).mkdir(parents=True)
    for name, entries in files.items():
        (root / annotations / f"{name}.json").write_text(json.dumps(entries))
    write_pictures(root / "images", root / masks, [*PARTS, *OBJECTS])
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write(tmp_path / "RefCOCOm", {"val_part_only": PARTS, "val_object_part": [*OBJECTS, *PARTS]})


def found(root: Path, **options: Any) -> list[tuple[str, str, str, str]]:
    source = refcocom(root, **{"split": "val", "setting": "object_part", **options})
    return [(record.id[-2:], t.id, t.granularity, t.category) for record in source for t in record.targets]


def test_everything_in_part_only_is_a_part(root: Path) -> None:
    assert found(root, setting="part_only") == [("09", "501", "part", "head"), ("25", "502", "part", "part")]


def test_in_object_part_parts_are_those_of_part_only(root: Path) -> None:
    parser = argparse.ArgumentParser()
    module = registry.SOURCES["refcocom"]
    module.add_arguments(parser)
    options = [f"--root={root}", "--split=val", "--setting=object_part", f"--images={root / 'images'}"]
    first, second = module.open(parser.parse_args(options))
    assert (first.split, first.source) == ("val", "refcocom (object_part)")
    assert [(t.id, t.granularity, t.category) for t in first.targets] == [
        ("12", "object", "dog"),
        ("501", "part", "head"),
    ]
    assert [(t.id, t.granularity) for t in second.targets] == [("502", "part")]
    assert [e.text for e in second.targets[0].expressions] == ["her left arm", "arm"]


def test_an_id_is_the_same_as_number_and_as_text(tmp_path: Path) -> None:
    parts = [{**PARTS[0], "segment_id": "501"}, {**PARTS[1], "segment_id": 502}]
    root = write(tmp_path / "r", {"val_part_only": parts, "val_object_part": [*OBJECTS, *PARTS]})
    assert [granularity for _, _, granularity, _ in found(root)] == ["object", "part", "part"]


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([{"category": " left ear "}], "left ear"),
        ([{"cat": "ear"}], "ear"),
        ([{"cat": 3}], "part"),
        ([{"category": 7, "part_name": "paw", "colour": ["unknown", "field"]}], "paw"),
    ],
)
def test_categories_are_taken_where_there_are_names(entries: list[Any], expected: str, tmp_path: Path) -> None:
    part = {key: value for key, value in PARTS[0].items() if key not in ("cat", "part")}
    root = write(tmp_path / "r", {"val_part_only": [{**part, **fields} for fields in entries]})
    assert [category for *_, category in found(root, setting="part_only")] == [expected]


@pytest.mark.parametrize("masks", ["Masks", "../Refcocom/masks", "../Refcocom/MASKS"])
def test_masks_are_found_under_another_case(masks: str, tmp_path: Path) -> None:
    root = write(tmp_path / "RefCOCOm", {"val_part_only": PARTS}, masks=masks)
    assert len(found(root, setting="part_only")) == 2


def test_segments_that_object_part_lacks_are_counted(tmp_path: Path) -> None:
    root = write(tmp_path / "r", {"val_part_only": PARTS, "val_object_part": [*OBJECTS, PARTS[0]]})
    source = refcocom(root, split="val", setting="object_part")
    assert source.notes == {"segments of part_only that object_part lacks": 1}


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    others = [{**part, "segment_id": 900 + place} for place, part in enumerate(PARTS)]
    root = write(tmp_path / "r", {"val_part_only": others, "val_object_part": [*OBJECTS, *PARTS]})
    with pytest.raises(UserError, match=r"has no segment .* so its parts cannot be told from its objects"):
        found(root)


def test_a_missing_part_only_is_said_to_be_needed(root: Path) -> None:
    (root / "annotations/val_part_only.json").unlink()
    with pytest.raises(UserError, match=r"val_part_only.json' .*object_part needs it too, to tell parts from objects"):
        found(root)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "testA"}, "no annotations at '.*testA_object_part.json'"),
        ({"split": "train"}, "unknown split 'train'; allowed: val, testA, testB"),
        ({"images": Path("/nowhere")}, r"no folder at '/nowhere' \(--images\)"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str, root: Path) -> None:
    with pytest.raises(UserError, match=message):
        found(root, **options)


def test_what_is_no_benchmark_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"\(--root\) has no folder 'annotations'; expected annotations, masks and images"
    ):
        found(tmp_path)


def test_a_bad_entry_is_named_and_comes_first(tmp_path: Path) -> None:
    root = write(tmp_path / "r", {"val_part_only": [PARTS[1], {**PARTS[0], "sentences": [{"raw": "head"}]}]})
    error, _ = refcocom(root, split="val", setting="part_only")
    assert isinstance(error, RecordError)
    assert "val_part_only.json: entry 1: field 'sentences': found {'raw': 'head'}" in str(error)
