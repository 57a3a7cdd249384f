"""RefCOCO and its family in REFER's layout: splits, masks, texts, counts, and what does not fit together."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from made_coco import by_id, decode, open_weights, rectangle_mask, run_lengths, texts
from made_refer import DOG, PERSON, annotation, rectangle, ref, write_data

from mres.errors import UserError
from mres.records import ImageRecord, RecordError
from mres.shards.check import check_record
from mres.shards.writer import WriteOptions, write_shards
from mres.sources.refer import is_of_split, refer
from mres.sources.refer_counts import PUBLISHED, Counts, check_counts
from mres.sources.source import NothingLeftError, RecordSource

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
        ({"sent": "", "raw": "The dog!"}, [], "blank sentences, left out"),
        ({"sent": None, "raw": "The dog!"}, ["The dog!"], "sentences without 'sent', taken from 'raw'"),
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


@pytest.mark.parametrize("text", ["sent", "raw"])
def test_what_was_typed_is_taken_instead_and_the_ids_of_the_source_travel(text: str, tmp_path: Path) -> None:
    changed = ref(102, 11, 5, "train", "woman", "lady", "her")
    changed["sentences"][1] |= {"sent": " ", "raw": ""}
    write(tmp_path, [changed])
    source = read(tmp_path, text=text)
    (record,) = source
    (target,) = record.targets
    assert (target.ref_id, target.ann_id, target.no_target) == (102, 11, False)
    assert [(e.text, e.sent_id, e.sent_index) for e in target.expressions] == [
        ({"sent": "woman", "raw": "Woman."}[text], 10200, 0),
        ({"sent": "her", "raw": "Her."}[text], 10202, 2),
    ]
    assert source.notes["blank sentences, left out"] == 1
    assert source.description.get("text", "sent") == text


def dot(id_: int) -> dict[str, Any]:
    """An annotation whose polygon covers no pixel."""
    return annotation(id_, 9, [[2.1, 2.1, 2.2, 2.1, 2.2, 2.2, 2.1, 2.2]])


def test_refs_that_cannot_be_targets_are_counted(tmp_path: Path) -> None:
    blank = [{"sent": " ", "raw": "", "tokens": [], "sent_id": 1}]
    refs = [
        *REFS[:1],
        ref(105, 13, 9, "train", sentences=blank),
        ref(106, 15, 9, "train", "dot"),
        ref(107, 11, 5, "train"),
    ]
    write(tmp_path, refs, annotations=[*ANNOTATIONS, dot(15)])
    source = read(tmp_path)
    assert len(source) == 2
    record = source[0]
    assert [target.id for target in record.targets] == ["101"]
    with pytest.raises(NothingLeftError, match="none of its 1 refs has a mask and an expression"):
        source[1]
    assert source.notes["refs without expressions, left out"] == 2
    assert source.notes["masks that cover no pixel, left out"] == 1
    assert source.notes["images none of whose refs is left, left out"] == 1


def test_a_mask_without_a_pixel_stays_in_a_held_out_split(tmp_path: Path) -> None:
    refs = [ref(1, 15, 9, "val", "dot"), ref(2, 13, 9, "val", "left person")]
    write(tmp_path, refs, annotations=[*ANNOTATIONS, dot(15)])
    source = read(tmp_path, "val")
    (record,) = source
    found = by_id(record)
    assert not decode(found["1"].mask).any()
    assert (found["1"].box, found["1"].category, found["1"].no_target) == ((0, 0, 0, 0), "person", False)
    assert decode(found["2"].mask).any()
    assert source.notes["masks that cover no pixel, kept as empty truth (held-out split)"] == 1
    check_record(record, "test")


def test_bad_pieces_cost_themselves(tmp_path: Path) -> None:
    good = rectangle(1, 1, 15, 20 - 2)
    pieces = [*good, *rectangle(100, 3, 10, 4), [3.0, 3.0, 4.0, 4.0], [5.0, 5.0, 9.0, 5.0, 7.0, 5.0], [1.0, 2.0, 3.0]]
    write(tmp_path, annotations=[{**ANNOTATIONS[0], "segmentation": pieces}, *ANNOTATIONS[1:]])
    source = read(tmp_path)
    _, record = source
    assert (decode(by_id(record)["102"].mask) == rectangle_mask(1, 1, 15, 18)).all()
    assert list(by_id(record)) == ["102", "103"]
    assert sum(number for note, number in source.notes.items() if note.startswith("polygons")) == 4


@pytest.mark.parametrize("segmentation", [rectangle(100, 3, 10, 4), None])
def test_a_mask_without_a_pixel_costs_its_ref_only(segmentation: Any, tmp_path: Path) -> None:
    write(tmp_path)
    whole = [len(record.targets) for record in read(tmp_path) if isinstance(record, ImageRecord)]
    write(tmp_path, annotations=[{**ANNOTATIONS[0], "segmentation": segmentation}, *ANNOTATIONS[1:]])
    source = read(tmp_path)
    left = [len(record.targets) for record in source if isinstance(record, ImageRecord)]
    assert len(left) == len(whole)
    assert sum(left) == sum(whole) - source.notes["masks that cover no pixel, left out"] < sum(whole)


def test_a_damaged_mask_costs_its_ref_and_is_a_bad_record(tmp_path: Path) -> None:
    write(tmp_path, annotations=[{**ANNOTATIONS[0], "segmentation": rectangle(1, 3, 10**9, 4)}, *ANNOTATIONS[1:]])
    source = read(tmp_path)
    _, record = source
    assert list(by_id(record)) == ["103"]
    (refused,) = source.refused
    assert re.search(r"image 5 \(COCO.*5.jpg\), annotation 11: .* far outside.*\(ref 102\)", refused)
    with pytest.raises(UserError, match="far outside"):
        write_shards(read(tmp_path), tmp_path / "strict")
    counts = write_shards(read(tmp_path), tmp_path / "lenient", WriteOptions(max_bad_fraction=0.5)).counts
    assert (counts.images, counts.targets["object"], counts.quarantined) == (2, 2, 1)


@pytest.mark.parametrize("sentence", ["the dog", 7, {"sent": 7}, {"tokens": []}, {"sent": "x" * 3000}])
def test_a_bad_sentence_is_named_and_costs_itself(sentence: Any, tmp_path: Path) -> None:
    write(tmp_path, [{**REFS[1], "sentences": [{"sent": "good"}, sentence]}])
    source = read(tmp_path)
    (record,) = source
    assert texts(record.targets[0]) == ["good"]
    (refused,) = source.refused
    assert r"refs(unc).p: ref 102, sentence 1: found" in refused


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
        ([REFS[1], ref(1, 13, 77, "train", "x")], "ref 1: its image 77 is not there; .*one release"),
        ([ref(1, 13, 5, "train", "x")], "ref 1: its image is 5, that of its annotation 13 is 9"),
        ([ref(1, -1, 5, "train", "x")], "ref 1: its annotation -1 is not there"),
        (
            [ref(1, 11, 5, "train", "x"), ref(1, 12, 5, "train", "y")],
            "ref number 1: the ref_id 1 occurs twice, before in ref number 0",
        ),
        ([ref(1, [11, 12], 5, "train", "x")], "ref 1 has 2 annotations, expected one; .* the format grefcoco"),
        ([{"sent": "x"}], "ref number 0: field 'ref_id': found None, expected a whole number"),
        ([{**REFS[0], "ann_id": []}], "field 'ann_id': found \\[\\]"),
        ([{**REFS[0], "ann_id": True}], "field 'ann_id': found True"),
        ([REFS[0], {**REFS[0], "split": 1}], "ref number 1: field 'split': found 1, expected text"),
        ([{**REFS[0], "sentences": "x"}], "field 'sentences': found 'x', expected a list"),
        ([7], "ref number 0: found 7, expected a dictionary"),
        ([], "is no file of refs: found \\[\\]"),
        ({"refs": []}, "is no file of refs: found {'refs'"),
    ],
)
def test_files_that_do_not_fit_are_refused(refs: Any, message: str, tmp_path: Path) -> None:
    write(tmp_path, refs, annotations=[*ANNOTATIONS, annotation(16, 5, rectangle(1, 1, 2, 2), category=44)])
    with pytest.raises(UserError, match=r"refs\(unc\).p'.*" + message):
        raise read(tmp_path).errors[0]


def test_a_broken_ref_costs_itself_where_there_is_a_budget(tmp_path: Path) -> None:
    broken: list[Any] = [7, {**REFS[0], "ref_id": None}, ref(1, 99, 5, "train", "x"), {**REFS[1], "sentences": ["y"]}]
    write(tmp_path, [*REFS, *broken, {**REFS[3], "ref_id": True}])
    source = read(tmp_path)
    assert [type(record) for record in source].count(RecordError) == 4  # the last is of another split
    counts = write_shards(read(tmp_path), tmp_path / "out", WriteOptions(max_bad_fraction=0.7)).counts
    assert (counts.images, counts.quarantined) == (2, 4)


def test_a_category_that_instances_do_not_name_costs_nothing(tmp_path: Path) -> None:
    write(tmp_path, [ref(1, 16, 5, "train", "x")], annotations=[annotation(16, 5, rectangle(1, 1, 2, 2), category=44)])
    (record,) = read(tmp_path)
    assert record.targets[0].category == "category 44"


def test_annotations_that_no_ref_can_name_are_counted(tmp_path: Path) -> None:
    write(tmp_path, images=[{"id": 9, "file_name": "a.jpg", "width": 40, "height": 20}], refs=[REFS[0]])
    (number,) = [n for note, n in read(tmp_path).notes.items() if note.startswith("entries of instances.json")]
    assert number == 2


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
    read(tmp_path, "val", split_by="google")


def test_sentences_count_too() -> None:
    published = PUBLISHED["refcoco", "unc"]
    found = {**published, "testB": Counts(1810, 5096), "train": Counts(1, 1)}
    for split in ("val", "testA", "test"):
        check_counts(found, published, split, where="f.p", accept=False)
    with pytest.raises(UserError, match=r"testB  sentences      5,095      5,096          \+1\n"):
        check_counts(found, published, "testB", where="f.p", accept=False)
    check_counts(found, published, "testB", where="f.p", accept=True)


def test_published_counts_are_those_of_what_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The file has as many as published; one sentence is blank, and one image is not there."""
    monkeypatch.setitem(PUBLISHED, ("refcoco", "unc"), {"train": Counts(3, 4), "val": Counts(2, 3)})
    refs = [*REFS[:3], ref(104, 13, 9, "val", "left person", " "), ref(105, 11, 5, "val", "x")]
    write(tmp_path, refs)
    refs[3]["sentences"][1] |= {"sent": " "}
    (tmp_path / "train2014/COCO_train2014_000000000005.jpg").unlink()
    lenient = WriteOptions(max_bad_fraction=0.5)
    with pytest.raises(UserError, match=r"(?s)split 'val'.*refs +2 +1 +-1\n.*sentences +3 +1 +-2\n.*--accept-counts"):
        write_shards(read(tmp_path, "val", accept_counts=False), tmp_path / "val", lenient)
    assert not (tmp_path / "val").exists()
    for split, accept, kept in (("val", True, 1), ("train", False, 2)):
        source = read(tmp_path, split, accept_counts=accept)
        write_shards(source, tmp_path / f"{split}-{accept}", lenient)
        number = {"val": 3, "train": 4}[split]
        assert source.notes[f"sentences kept (published of '{split}': {number})"] == kept
    assert source.notes["refs kept (published of 'train': 3)"] == 1


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
