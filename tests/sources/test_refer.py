"""RefCOCO and its family in REFER's layout: splits, masks, texts, counts, and what does not fit together."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from made_coco import by_id, decode, open_weights, rectangle_mask, run_lengths, texts
from made_refer import DOG, PERSON, annotation, rectangle, ref, write_data

from mres.errors import UserError
from mres.records import ImageRecord, RecordError
from mres.shards.check import check_record
from mres.sources.refer import is_of_split, refer
from mres.sources.refer_counts import PUBLISHED, Counts, check_counts
from mres.sources.source import RecordSource

ANNOTATIONS = [
    annotation(11, 5, rectangle(2, 3, 10, 4)),
    annotation(12, 5, rectangle(20, 3, 10, 4) + rectangle(20, 12, 4, 4), category=DOG),
    annotation(13, 9, run_lengths(1, 1, 8, 8)),
    annotation(14, 9, rectangle(30, 10, 5, 5)),
]
REFS = [
    ref(101, 14, 9, "train", "the man", "boy on the right"),
    ref(102, 11, 5, "train", "woman", category_id=PERSON),
    ref(103, 12, 5, "train", "café dog", category_id=DOG),
    ref(104, 13, 9, "val", "left person"),
]


def write(root: Path, refs: Any = REFS, dataset: str = "refcoco", by: str = "unc", **fields: Any) -> None:
    write_data(root / dataset, f"refs({by}).p", refs, fields.pop("annotations", ANNOTATIONS), **fields)


def read(root: Path, split: str = "train", dataset: str = "refcoco", **options: Any) -> RecordSource:
    return refer(root, dataset, split, root / "train2014", **{"accept_counts": True, **options})


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_refs_become_targets_of_their_images(protocol: int, tmp_path: Path) -> None:
    write(tmp_path, protocol=protocol)
    source = read(tmp_path)
    first, second = source
    assert isinstance(first, ImageRecord)
    assert isinstance(second, ImageRecord)
    assert [first.id, second.id] == ["COCO_train2014_000000000009", "COCO_train2014_000000000005"]  # as in the file
    assert (second.source, second.split, second.width, second.height) == ("refcoco (unc)", "train", 40, 20)
    assert second.image == (tmp_path / "train2014/COCO_train2014_000000000005.jpg").read_bytes()
    found = by_id(second)
    assert list(found) == ["102", "103"]
    assert [(t.granularity, t.category, t.parent) for t in found.values()] == [
        ("object", "person", None),
        ("object", "dog", None),
    ]
    assert (decode(found["102"].mask) == rectangle_mask(2, 3, 10, 4)).all()
    assert (decode(found["103"].mask) == rectangle_mask(20, 3, 10, 4) | rectangle_mask(20, 12, 4, 4)).all()
    assert found["103"].box == (20, 3, 10, 13)
    assert texts(found["103"]) == ["café dog"]
    assert texts(by_id(first)["101"]) == ["the man", "boy on the right"]
    assert source.notes["refs of other splits than 'train', left out"] == 1
    for record in (first, second):
        check_record(record, "test")


def test_the_command_line_reads_the_same(tmp_path: Path) -> None:
    write(tmp_path)
    options = ["--root", str(tmp_path), "--dataset", "refcoco", "--images", str(tmp_path / "train2014")]
    source = open_weights("refer", *options, "--split", "val", "--accept-counts")
    (record,) = source
    assert isinstance(record, ImageRecord)
    assert (decode(by_id(record)["104"].mask) == rectangle_mask(1, 1, 8, 8)).all()
    assert {**source.description, "refs_sha256": "", "instances_sha256": ""} == {
        "format": "refer",
        "dataset": "refcoco",
        "split_by": "unc",
        "split": "val",
        "refs": "refcoco/refs(unc).p",
        "refs_sha256": "",
        "instances": "refcoco/instances.json",
        "instances_sha256": "",
    }
    with pytest.raises(UserError, match="--accept-counts"):
        open_weights("refer", *options, "--split", "val")


@pytest.mark.parametrize(
    ("found", "splits"),
    [
        ("train", {"train"}),
        ("val", {"val"}),
        ("test", {"test"}),
        ("testA", {"test", "testA"}),
        ("testB", {"test", "testB"}),
        ("testAB", {"test", "testA", "testB"}),
        ("testBC", {"test", "testB", "testC"}),
    ],
)
def test_splits_are_matched_as_refer_does(found: str, splits: set[str]) -> None:
    known = ("train", "val", "test", "testA", "testB", "testC")
    assert {split for split in known if is_of_split(found, split)} == splits


@pytest.mark.parametrize(
    ("dataset", "by", "expected"),
    [
        ("refcoco", None, "unc"),
        ("refcoco", "google", "google"),
        ("refcoco+", None, "unc"),
        ("refcocog", None, "umd"),
        ("refcocog", "google", "google"),
        ("refclef", "berkeley", "berkeley"),
    ],
)
def test_each_data_set_has_its_splitters(dataset: str, by: str | None, expected: str, tmp_path: Path) -> None:
    write(tmp_path, dataset=dataset, by=expected)
    source = read(tmp_path, dataset=dataset, split_by=by)
    (record, _) = source
    assert isinstance(record, ImageRecord)
    assert record.source == f"{dataset} ({expected})"


def test_refclef_has_lists_of_run_lengths(tmp_path: Path) -> None:
    pieces = [run_lengths(1, 1, 4, 4), run_lengths(20, 1, 4, 4)]
    write(
        tmp_path,
        [ref(1, "9_1", 9, "testA", "sky")],
        dataset="refclef",
        annotations=[{**annotation(0, 9, pieces), "id": "9_1"}],
    )
    source = read(tmp_path, "testA", dataset="refclef", accept_counts=False)
    (record,) = source
    assert isinstance(record, ImageRecord)
    assert (decode(record.targets[0].mask) == rectangle_mask(1, 1, 4, 4) | rectangle_mask(20, 1, 4, 4)).all()
    assert source.notes == {"split 'testA' without published counts, not compared": 1}


@pytest.mark.parametrize(
    ("sentence", "expected", "note"),
    [
        ({"sent": " the dog ", "raw": "The dog!"}, ["the dog"], None),
        ({"sent": "", "raw": "The dog!"}, ["The dog!"], "sentences without 'sent', taken from 'raw'"),
        ({"raw": "The dog!"}, ["The dog!"], "sentences without 'sent', taken from 'raw'"),
        ({"sent": " ", "raw": ""}, [], "blank sentences, left out"),
    ],
)
def test_the_cleaned_text_is_taken(
    sentence: dict[str, str], expected: list[str], note: str | None, tmp_path: Path
) -> None:
    changed = ref(102, 11, 5, "train")
    changed["sentences"] = [sentence, {"sent": "woman"}]
    write(tmp_path, [changed])
    source = read(tmp_path)
    (record,) = source
    assert isinstance(record, ImageRecord)
    assert texts(record.targets[0]) == [*expected, "woman"]
    assert set(source.notes) - set(read(tmp_path).notes) == ({note} if note else set())


def test_refs_that_cannot_be_targets_are_counted(tmp_path: Path) -> None:
    dot = annotation(15, 9, rectangle(2, 2, 1, 1))
    dot["segmentation"] = [[2.1, 2.1, 2.2, 2.1, 2.2, 2.2, 2.1, 2.2]]
    blank = [{"sent": " ", "raw": "", "tokens": [], "sent_id": 1}]
    refs = [
        *REFS[:1],
        ref(105, 13, 9, "train", sentences=blank),
        ref(106, 15, 9, "train", "dot"),
        ref(107, 11, 5, "train"),
    ]
    write(tmp_path, refs, annotations=[*ANNOTATIONS, dot])
    source = read(tmp_path)
    first, error = source
    assert isinstance(first, ImageRecord)
    assert [target.id for target in first.targets] == ["101"]
    assert isinstance(error, RecordError)
    assert str(error).endswith("none of its 1 refs has a mask and an expression")
    assert source.notes["refs without expressions, left out"] == 2
    assert source.notes["masks that cover no pixel, left out"] == 1


@pytest.mark.parametrize("segmentation", [rectangle(100, 3, 10, 4), None])
def test_a_mask_without_a_pixel_costs_its_ref_only(segmentation: Any, tmp_path: Path) -> None:
    write(tmp_path)
    whole = [len(record.targets) for record in read(tmp_path) if isinstance(record, ImageRecord)]
    write(tmp_path, annotations=[{**ANNOTATIONS[0], "segmentation": segmentation}, *ANNOTATIONS[1:]])
    source = read(tmp_path)
    left = [len(record.targets) for record in source if isinstance(record, ImageRecord)]
    assert len(left) == len(whole)
    assert sum(left) == sum(whole) - source.notes["masks that cover no pixel, left out"] < sum(whole)


def test_a_damaged_mask_is_of_its_image_only(tmp_path: Path) -> None:
    write(tmp_path, annotations=[{**ANNOTATIONS[0], "segmentation": rectangle(1, 3, 1e9, 4)}, *ANNOTATIONS[1:]])
    good, error = read(tmp_path)
    assert isinstance(good, ImageRecord)
    assert isinstance(error, RecordError)
    with pytest.raises(RecordError, match=r"image 5 \(COCO.*5.jpg\), annotation 11: .* far outside"):
        raise error


@pytest.mark.parametrize("sentence", ["the dog", 7, {"sent": 7}, {"tokens": []}])
def test_a_bad_sentence_is_named(sentence: Any, tmp_path: Path) -> None:
    write(tmp_path, [{**REFS[1], "sentences": [{"sent": "good"}, sentence]}])
    (error,) = read(tmp_path)
    assert isinstance(error, RecordError)
    assert r"refs(unc).p: ref 102, sentence 1: found" in str(error)


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "train2014/COCO_train2014_000000000005.jpg").unlink()
    _, error = read(tmp_path)
    assert isinstance(error, RecordError)
    assert "'" + str(tmp_path / "train2014/COCO_train2014_000000000005.jpg") + "' cannot be read" in str(error)


@pytest.mark.parametrize(
    ("refs", "message"),
    [
        ([ref(1, 99, 5, "train", "x")], "1 of 1 refs .*the first, ref 1: its annotation 99 is not there"),
        ([REFS[1], ref(1, 13, 77, "train", "x")], "1 of 2 refs .*ref 1: its image 77 is not there"),
        ([ref(1, 13, 5, "train", "x")], "ref 1: its image is 5, that of its annotation 13 is 9"),
        ([ref(1, 16, 5, "train", "x")], "ref 1: the category 44 of its annotation 16 is not there"),
        ([ref(1, -1, 5, "train", "x")], "ref 1: its annotation -1 is not there"),
        ([ref(1, 11, 5, "train", "x"), ref(1, 12, 5, "train", "y")], "the ref_id 1 occurs twice"),
        ([ref(1, [11, 12], 5, "train", "x")], "ref 1 has 2 annotations, expected one; .* the format grefcoco"),
        ([{"sent": "x"}], "ref number 0: field 'ref_id': found NoneType 'None', expected a whole number"),
        ([{**REFS[0], "ann_id": []}], "field 'ann_id': found list"),
        ([{**REFS[0], "ann_id": True}], "field 'ann_id': found bool 'True'"),
        ([REFS[0], {**REFS[0], "split": 1}], "ref number 1: field 'split': found int '1', expected text"),
        ([{**REFS[0], "sentences": "x"}], "field 'sentences': found str 'x', expected a list"),
        ([7], "ref number 0: found int '7', expected a dictionary"),
        ([], "is no file of refs: found list"),
        ({"refs": []}, "is no file of refs: found dict"),
    ],
)
def test_files_that_do_not_fit_are_refused(refs: Any, message: str, tmp_path: Path) -> None:
    write(tmp_path, refs, annotations=[*ANNOTATIONS, annotation(16, 5, rectangle(1, 1, 2, 2), category=44)])
    with pytest.raises(UserError, match=r"refs\(unc\).p'.*" + message):
        read(tmp_path)


def test_annotations_that_no_ref_can_name_are_counted(tmp_path: Path) -> None:
    write(tmp_path, images=[{"id": 9, "file_name": "a.jpg", "width": 40, "height": 20}], refs=[REFS[0]])
    assert read(tmp_path).notes["annotations of instances.json without an image or a category, left out"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "testA"}, r"has no ref of the split 'testA' \(--split\); its refs: train \(3\), val \(1\)"),
        ({"split": "minival"}, "unknown split 'minival'.*train, val, test, testA"),
        ({"dataset": "refcocox"}, r"unknown data set 'refcocox' \(--dataset\); allowed: refcoco, refcoco\+, refcocog"),
        ({"split_by": "umd"}, r"refcoco has no split by 'umd' \(--split-by\); allowed: unc, google"),
        ({"dataset": "refcoco+", "split_by": "google"}, r"refcoco\+ has no split by 'google' .* allowed: unc"),
        (
            {"split_by": "google"},
            r"no 'refs\(google\).p' in '.*refcoco' \(--split-by\); such files there: refs\(unc\).p",
        ),
        ({"dataset": "refcoco+"}, r"no folder 'refcoco\+' in '.*' \(--root\); folders there: refcoco, train2014"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(UserError, match=message):
        read(tmp_path, **options)


def test_wrong_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder at '.*nowhere' \(--root\)"):
        read(tmp_path / "nowhere")
    write(tmp_path)
    with pytest.raises(UserError, match=r"has an instances.json itself; give the folder above, with 'refcoco' in it"):
        read(tmp_path / "refcoco")
    with pytest.raises(UserError, match=r"no folder at '/nowhere' \(--images\)"):
        refer(tmp_path, "refcoco", "train", Path("/nowhere"), accept_counts=True)
    (tmp_path / "refcoco/instances.json").unlink()
    with pytest.raises(UserError, match=r"no 'instances.json' in '.*refcoco' \(--root\)"):
        read(tmp_path)


def test_counts_are_those_of_the_file(tmp_path: Path) -> None:
    def write_val(num: int) -> None:
        annotations = [annotation(i, 9, rectangle(1, 1, 4, 4)) for i in range(1, num + 1)]
        refs = [ref(i, i, 9, "val", "a dog", "it") for i in range(1, num + 1)]
        write(tmp_path, [*refs, ref(0, 1, 9, "train", "x")], by="google", annotations=annotations)

    write_val(5000)
    assert set(read(tmp_path, "val", split_by="google", accept_counts=False).notes) == {
        "refs of other splits than 'val', left out"
    }
    write_val(4999)
    with pytest.raises(UserError) as info:
        read(tmp_path, "val", split_by="google", accept_counts=False)
    what, _, *rows, remedy = str(info.value).splitlines()
    assert f"'{tmp_path}/refcoco/refs(google).p'" in what
    assert "'val'" in what
    assert [row.split() for row in rows] == [
        ["train", "refs", "40,000", "1", "-39,999"],
        ["val", "refs", "5,000", "4,999", "-1"],
        ["test", "refs", "5,000", "0", "-5,000"],
    ]
    assert "--accept-counts" in remedy
    notes = read(tmp_path, "val", split_by="google").notes
    assert notes["refs (published of 'val': 5000)"] == 4999


def test_sentences_count_too() -> None:
    published = PUBLISHED["refcoco", "unc"]
    found = {**published, "testB": Counts(1810, 5096), "train": Counts(1, 1)}
    notes: Counter[str] = Counter()
    for split in ("val", "testA", "test"):
        check_counts(found, published, split, where="f.p", accept=False, notes=notes)
    assert not notes
    with pytest.raises(UserError, match=r"testB  sentences      5,095      5,096          \+1\n"):
        check_counts(found, published, "testB", where="f.p", accept=False, notes=notes)
    check_counts(found, published, "testB", where="f.p", accept=True, notes=notes)
    assert notes == {"sentences (published of 'testB': 5095)": 5096}


def test_published_counts_add_up() -> None:
    """To the totals that are published apart from them, and to REFER's "test", which is all of testA and testB."""
    totals = {
        ("refcoco", "unc"): (50000, 142210),
        ("refcoco+", "unc"): (49856, 141564),
        ("refcocog", "umd"): (49822, 95010),
    }
    for key, (refs, sentences) in totals.items():
        counts = PUBLISHED[key]
        parts = [counts[split] for split in counts if split != "test" or "testA" not in counts]
        assert sum(part.refs for part in parts) == refs
        assert sum(part.sentences or 0 for part in parts) == sentences
    for dataset in ("refcoco", "refcoco+"):
        counts = PUBLISHED[dataset, "unc"]
        assert counts["test"].refs == counts["testA"].refs + counts["testB"].refs
        assert counts["test"].sentences == (counts["testA"].sentences or 0) + (counts["testB"].sentences or 0)
    google = PUBLISHED["refcocog", "google"].values()
    assert sum(part.sentences or 0 for part in google) == 95010


def test_instances_that_are_no_coco_file_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "refcoco/instances.json").write_text(json.dumps({"annotations": []}))
    with pytest.raises(UserError, match=r"instances.json' is not a COCO file: it has no list 'images'"):
        read(tmp_path)
