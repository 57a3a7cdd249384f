"""What is written: bytes, atomicity, budget; and that the stock webdataset library reads it."""

import io
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset
from made_records import make_image, make_record
from PIL import Image
from pycocotools import mask as coco

from mres.errors import UserError
from mres.record_checks import record_from_json
from mres.records import Expression, ImageRecord, RecordError, Rle, Target, encode_mask
from mres.shards.reader import ShardSet
from mres.shards.verify import damages
from mres.shards.writer import WriteOptions, write_shards
from mres.sources.source import NothingLeftError, RecordSource


def test_stock_webdataset_reads_the_shards(shard_folder: Path) -> None:
    shards = sorted(str(path) for path in shard_folder.glob("*.tar"))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{i:08d}" for i in range(7)]
    for index, sample in enumerate(samples):
        value = json.loads(sample["json"])
        assert value["image"] == f"{index:08d}.jpg"
        assert record_from_json(value, sample["jpg"], "webdataset") == make_record(index)
    decoded = next(iter(webdataset.WebDataset(shards, shardshuffle=False).decode("pil")))
    assert decoded["jpg"].size == (20, 12)
    assert decoded["json"]["id"] == "im0"


def test_same_records_give_the_same_bytes(tmp_path: Path, write_set) -> None:
    manifests = [write_set(tmp_path / name) for name in ("a", "b")]
    assert manifests[0] == manifests[1]
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    changed = [make_record(i) for i in range(7)]
    target = replace(changed[6].targets[1], expressions=(Expression("wheel X", "category"),))
    changed[6] = replace(changed[6], targets=(changed[6].targets[0], target))
    assert write_set(tmp_path / "c", changed).sha256 != manifests[0].sha256


def test_the_manifest_counts(tmp_path: Path, write_set) -> None:
    manifest = write_set(tmp_path / "set")
    assert [shard.records for shard in manifest.shards] == [3, 3, 1]
    counts = manifest.counts
    assert (counts.images, counts.targets) == (7, {"object": 7, "part": 7})
    assert counts.expressions == {"object": 14, "part": 1 + 2 + 3 + 1 + 2 + 3 + 1}
    assert counts.expressions_by_kind == {"object": {"": 14}, "part": {"category": 13}}
    assert counts.targets_by_category["part"] == {"car:wheel": 7}
    assert counts.images_by_split == {"train": 7}


def test_png_and_jpeg_may_be_mixed(tmp_path: Path, write_set) -> None:
    records = [make_record(0), make_record(1, suffix="PNG"), make_record(2)]
    write_set(tmp_path / "set", records)
    shards = ShardSet(tmp_path / "set")
    assert [shards.read(i) for i in range(3)] == records


def broken_records() -> dict[str, tuple[object, str]]:
    good = make_record(1)
    wide = replace(good.targets[0], mask=replace(good.targets[0].mask, width=21))
    empty = replace(good.targets[1], expressions=(Expression("  "),))
    return {
        "truncated": (
            replace(good, image=good.image[: len(good.image) // 2]),
            "'im1'.*damaged or cut off JPEG",
        ),
        "not an image": (replace(good, image=b"GARBAGE"), "'im1'.*is a text"),
        "other format": (replace(good, image=b"%PDF-1.7 "), "'im1'.*is a PDF"),
        "other size": (replace(good, image=make_image(1, 30, 12)), "30x12 pixels, the record says 20x12"),
        "empty expression": (replace(good, targets=(good.targets[0], empty)), "'im1', target 'p'.*'expressions'"),
        "mask of another size": (replace(good, targets=(wide, *good.targets[1:])), r"mask.size.*\[12, 20\]"),
        "same id": (replace(good, id="im0"), "'im0': its id occurs twice"),
        "from the source": (RecordError("x.json: image 5: missing"), "image 5: missing"),
    }


@pytest.mark.parametrize("name", broken_records())
def test_a_broken_record_stops_the_build_or_is_quarantined(name: str, tmp_path: Path, write_set) -> None:
    bad, message = broken_records()[name]
    records = [make_record(0), bad, make_record(2), make_record(3)]
    with pytest.raises(UserError, match=message):
        write_set(tmp_path / "strict", records)
    assert not (tmp_path / "strict").exists()
    manifest = write_set(tmp_path / "lenient", records, max_bad_fraction=0.25)
    assert manifest.counts.quarantined == 1
    shards = ShardSet(tmp_path / "lenient")
    assert [shards.read(i) for i in range(len(shards))] == [make_record(i) for i in (0, 2, 3)]
    assert manifest.counts.expressions["part"] == 1 + 3 + 1
    listed = [json.loads(line) for line in (tmp_path / "lenient/quarantine.jsonl").read_text().splitlines()]
    assert len(listed) == 1
    with pytest.raises(RecordError, match=message):
        raise RecordError(listed[0]["error"])


def test_more_bad_records_than_allowed_are_refused(tmp_path: Path, write_set) -> None:
    records = [make_record(0), RecordError("first bad"), make_record(2), RecordError("second bad")]
    with pytest.raises(UserError, match=r"(?s)2 of 4.*0.25.*first bad.*second bad"):
        write_set(tmp_path / "set", records, max_bad_fraction=0.25)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_one_run_names_the_first_twenty_bad_records(workers: int, tmp_path: Path, write_set) -> None:
    records = [RecordError(f"bad {i:02}") if i % 2 else make_record(i) for i in range(50)]
    with pytest.raises(UserError) as refused:
        write_set(tmp_path / "set", records, workers=workers, images_per_shard=50 if workers else 5)
    named = [line.strip() for line in str(refused.value).splitlines() if line.strip().startswith("bad")]
    assert named == [f"bad {i:02}" for i in range(1, 40, 2)]
    assert list(tmp_path.iterdir()) == [] or not (tmp_path / "set").exists()


def test_what_no_reader_has_foreseen_is_a_bad_record_too(tmp_path: Path, write_set) -> None:
    class Source(list):
        def __getitem__(self, index):
            return [
                lambda: make_record(0),
                lambda: "\ud800".encode(),
                lambda: float(10**400),
                lambda: Path("n" * 5000).read_bytes(),
            ][index]()

    manifest = write_set(tmp_path / "set", Source([None] * 4), max_bad_fraction=0.75)
    assert (manifest.counts.images, manifest.counts.quarantined) == (1, 3)
    listed = (tmp_path / "set/quarantine.jsonl").read_text().splitlines()
    for line, what in zip(listed, ("UnicodeEncodeError", "OverflowError", "File name too long"), strict=True):
        assert what in json.loads(line)["error"]
        assert "test: record number" in json.loads(line)["error"]


def test_half_characters_in_a_message_are_written_down(tmp_path: Path, write_set) -> None:
    records = [make_record(0), RecordError("x.json: \ud800: missing"), replace(make_record(2), id="\udfff")]
    assert write_set(tmp_path / "set", records, max_bad_fraction=0.7).counts.quarantined == 2
    errors = [json.loads(line)["error"] for line in (tmp_path / "set/quarantine.jsonl").read_text().splitlines()]
    assert errors[0] == "x.json: \ud800: missing"
    assert "'id'" in errors[1]


def test_the_same_id_is_named_with_both_places(tmp_path: Path) -> None:
    records = [make_record(0), RecordError("bad"), make_record(2), replace(make_record(3), id="im0")]
    source = replace(RecordSource.of(records, {"format": "test"}), place_of=lambda number: f"own.jsonl:{number + 1}")
    with pytest.raises(UserError, match=r"own\.jsonl:4: record 'im0'.*own\.jsonl:1;"):
        write_shards(source, tmp_path / "set", WriteOptions(max_bad_fraction=0.25))


def empty_record(index: int, **of_target: object) -> ImageRecord:
    record = make_record(index)
    empty = replace(record.targets[0], mask=encode_mask(np.zeros((12, 20), np.uint8)), **of_target)
    return replace(record, targets=(empty, *record.targets[1:]))


def test_empty_masks_are_counted_and_warned_of_and_refused_above_a_share(tmp_path: Path, write_set, capsys) -> None:
    good = [make_record(i) for i in range(4)]
    masks = sum(len(record.targets) for record in good)
    records = [empty_record(0), *good[1:]]
    plain = write_set(tmp_path / "plain", good)
    assert capsys.readouterr().err == ""
    manifest = write_set(tmp_path / "warned", records)
    assert f"warning: 1 of {masks} masks have no pixel" in capsys.readouterr().err
    assert manifest.options == plain.options  # it decides no byte
    with pytest.raises(UserError, match=rf"1 of {masks} masks.*no_target.*--max-empty-fraction"):
        write_set(tmp_path / "refused", records, max_empty_fraction=0)
    assert not (tmp_path / "refused").exists()
    write_set(tmp_path / "meant", [empty_record(0, no_target=True), *good[1:]], max_empty_fraction=0)
    assert "warning" not in capsys.readouterr().err


def test_a_record_of_which_nothing_is_left_is_no_bad_one(tmp_path: Path, write_set) -> None:
    manifest = write_set(tmp_path / "set", [make_record(0), NothingLeftError("counted"), make_record(2)])
    assert (manifest.counts.images, manifest.counts.quarantined) == (2, 0)


def test_who_knows_how_many_were_published_is_asked_about_what_is_left(tmp_path: Path) -> None:
    asked = []
    records = [make_record(0), RecordError("bad"), make_record(2)]
    source = replace(RecordSource.of(records, {"format": "test"}), check_kept=lambda *kept: asked.append(kept))
    counts = write_shards(source, tmp_path / "set", WriteOptions(max_bad_fraction=0.5)).counts
    assert asked == [(sum(counts.targets.values()), sum(counts.expressions.values()))]


def test_no_record_at_all_is_an_error(tmp_path: Path, write_set) -> None:
    with pytest.raises(UserError, match="no good record"):
        write_set(tmp_path / "set", [])
    assert list(tmp_path.iterdir()) == []


class Interrupted(list):
    """Records of which one raises what interrupts a build."""

    def __init__(self, error: type[BaseException], at: int) -> None:
        super().__init__(make_record(i) for i in range(7))
        self.error, self.at = error, at

    def __getitem__(self, index):
        if index == self.at:
            raise self.error
        return super().__getitem__(index)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_build_interrupted_before_its_first_shard_leaves_nothing(error, tmp_path: Path, write_set) -> None:
    before = write_set(tmp_path / "set")
    for name, overwrite in (("new", False), ("set", True)):
        with pytest.raises(error):
            write_set(tmp_path / name, Interrupted(error, 1), overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert ShardSet(tmp_path / "set").manifest == before


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_build_goes_on_from_its_finished_shards(workers: int, tmp_path: Path, write_set) -> None:
    whole = write_set(tmp_path / "whole")
    with pytest.raises(RuntimeError):
        write_set(tmp_path / "set", Interrupted(RuntimeError, 6), workers=workers)
    finished = [
        int(path.stem.removeprefix("piece-")) for path in (tmp_path / "set.incomplete/result").glob("piece-*.json")
    ]
    assert finished
    again: list = [make_record(i) for i in range(7)]
    for shard in finished:
        again[3 * shard] = RecordError("a finished shard is not made again")
    assert write_set(tmp_path / "set", again, workers=workers) == whole
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "set" / path.name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "whole"]


def test_another_build_does_not_go_on_from_what_it_finds(tmp_path: Path, write_set) -> None:
    with pytest.raises(RuntimeError):
        write_set(tmp_path / "set", Interrupted(RuntimeError, 4))
    manifest = write_set(tmp_path / "set", images_per_shard=2)
    assert [shard.records for shard in manifest.shards] == [2, 2, 2, 1]


@pytest.mark.parametrize("layout", ["tar", "mds"])
def test_processes_change_no_byte(layout: str, tmp_path: Path, write_set) -> None:
    records: list = [make_record(i) for i in range(7)]
    records[3] = RecordError("bad")
    options = {"layout": layout, "max_bad_fraction": 0.2}
    assert write_set(tmp_path / "one", records, **options) == write_set(tmp_path / "two", records, workers=2, **options)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_a_dead_worker_is_named(tmp_path: Path, write_set) -> None:
    class Deadly(list):
        def __getitem__(self, index):
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(UserError, match=r"a worker process died \(exit code -9"):
        write_set(tmp_path / "set", Deadly([make_record(0)]), workers=1)


def test_stock_streaming_reads_mds_shards(tmp_path: Path, write_set) -> None:
    from streaming import StreamingDataset

    write_set(tmp_path / "set", layout="mds")
    samples = list(StreamingDataset(local=str(tmp_path / "set"), shuffle=False, batch_size=1))
    assert [sample["id"] for sample in samples] == [f"im{i}" for i in range(7)]
    for index, sample in enumerate(samples):
        assert record_from_json(sample["record"], sample["image"], "streaming") == make_record(index)
    shards = ShardSet(tmp_path / "set")
    assert [shards.read(i) for i in range(7)] == [make_record(i) for i in range(7)]


def test_images_are_made_smaller_with_their_masks(tmp_path: Path, write_set) -> None:
    height, width = 90, 200
    mask_HW = np.zeros((height, width), np.uint8)
    mask_HW[30:60, 50:100] = 1
    thin_HW = np.zeros((height, width), np.uint8)
    thin_HW[10, 20:180] = 1
    masks = {"box": mask_HW, "thin": thin_HW}
    targets = tuple(
        Target(name, "object", "thing", encode(mask), (50.0, 30.0, 50.0, 30.0), (Expression(name),))
        for name, mask in masks.items()
    )
    large = ImageRecord("large", make_image(0, width, height), width, height, "train", "made", targets)
    small = make_record(1)
    write_set(tmp_path / "set", [large, small], max_side=100)
    shards = ShardSet(tmp_path / "set")
    assert shards.read(1) == small
    record = shards.read(0)
    assert (record.width, record.height) == (100, 45)
    assert Image.open(io.BytesIO(record.image)).size == (100, 45)
    box, thin = (decode(target.mask) for target in record.targets)
    assert box[15:30, 25:50].all()
    assert box.sum() == 15 * 25
    assert thin[5, 10:90].all()
    assert thin.sum() == 80
    assert record.targets[0].box == (25, 15, 25, 15)
    assert damages(str(tmp_path / "set")) == []


def encode(mask_HW: np.ndarray) -> Rle:
    return Rle(*mask_HW.shape, coco.encode(np.asfortranarray(mask_HW))["counts"])


def decode(mask: Rle) -> np.ndarray:
    return coco.decode({"size": [mask.height, mask.width], "counts": mask.counts})


def test_an_existing_folder_is_replaced_only_if_asked_and_only_if_it_is_a_set(tmp_path: Path, write_set) -> None:
    write_set(tmp_path / "set")
    with pytest.raises(UserError, match="--overwrite"):
        write_set(tmp_path / "set")
    write_set(tmp_path / "set", [make_record(9)], overwrite=True)
    assert ShardSet(tmp_path / "set").read(0) == make_record(9)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is not a shard set"):
        write_set(tmp_path / "home", overwrite=True)
    assert (tmp_path / "home/thesis.tex").exists()


def test_what_a_killed_build_left_is_no_obstacle(tmp_path: Path, write_set) -> None:
    (tmp_path / "set.incomplete/result").mkdir(parents=True)
    (tmp_path / "set.incomplete/result/shard-000007.tar").write_bytes(b"half")
    (tmp_path / "set.incomplete/journal.jsonl").write_text('{"purpose": "another"}\n')
    (tmp_path / "set").mkdir()
    write_set(tmp_path / "set")
    assert len(ShardSet(tmp_path / "set")) == 7
    assert not (tmp_path / "set/shard-000007.tar").exists()
