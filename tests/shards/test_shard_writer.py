"""What is written: bytes, atomicity, budget; and that the stock webdataset library reads it."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import webdataset
from made_records import make_image, make_record
from PIL import Image

from mres.errors import UserError
from mres.records import Expression, RecordError, record_from_json
from mres.shards.reader import ShardSet


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
    buffer = io.BytesIO()
    Image.new("RGB", (20, 12)).save(buffer, "BMP")
    empty = replace(good.targets[1], expressions=(Expression("  "),))
    return {
        "truncated": (
            replace(good, image=good.image[: len(good.image) // 2]),
            "'im1'.*cannot be decoded: .*[Tt]runcated",
        ),
        "not an image": (replace(good, image=b"GARBAGE"), "'im1'.*cannot be decoded"),
        "other format": (replace(good, image=buffer.getvalue()), "BMP, allowed: JPEG, PNG"),
        "other size": (replace(good, image=make_image(1, 30, 12)), "30x12 pixels, the record says 20x12"),
        "empty expression": (replace(good, targets=(good.targets[0], empty)), "'im1', target 'p'.*'expressions'"),
        "mask of another size": (replace(good, width=21), r"mask.size.*\[12, 21\]"),
        "same id": (replace(good, id="im0"), "'im0': its id occurs twice"),
        "from the source": (RecordError("x.json: image 5: missing"), "image 5: missing"),
    }


@pytest.mark.parametrize("name", broken_records())
def test_a_broken_record_stops_the_build_or_is_quarantined(name: str, tmp_path: Path, write_set) -> None:
    bad, message = broken_records()[name]
    records = [make_record(0), bad, make_record(2), make_record(3)]
    with pytest.raises(RecordError, match=message):
        write_set(tmp_path / "strict", records)
    assert list(tmp_path.iterdir()) == []
    manifest = write_set(tmp_path / "lenient", records, max_bad_fraction=0.25)
    assert manifest.counts.quarantined == 1
    assert len(ShardSet(tmp_path / "lenient")) == 3
    listed = [json.loads(line) for line in (tmp_path / "lenient/quarantine.jsonl").read_text().splitlines()]
    assert len(listed) == 1
    with pytest.raises(RecordError, match=message):
        raise RecordError(listed[0]["error"])


def test_more_bad_records_than_allowed_are_refused(tmp_path: Path, write_set) -> None:
    records = [make_record(0), RecordError("first bad"), make_record(2), RecordError("second bad")]
    with pytest.raises(UserError, match=r"(?s)2 of 4.*0.25.*first bad.*second bad"):
        write_set(tmp_path / "set", records, max_bad_fraction=0.25)
    assert list(tmp_path.iterdir()) == []


def test_the_budget_refers_to_the_records_that_came(tmp_path: Path, write_set) -> None:
    """A source that announces more than it gives (records of other splits) must not widen the budget."""
    from mres.shards.writer import WriteOptions, write_shards

    options = WriteOptions(max_bad_fraction=0.25)
    with pytest.raises(UserError, match="1 of 2"):
        write_shards(
            [make_record(0), RecordError("bad")], tmp_path / "s", source={}, name="n", total=100, options=options
        )


def test_no_record_at_all_is_an_error(tmp_path: Path, write_set) -> None:
    with pytest.raises(UserError, match="no good record"):
        write_set(tmp_path / "set", [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_build_leaves_nothing_and_keeps_what_was_there(error, tmp_path: Path, write_set) -> None:
    class Interrupted(list):
        def __iter__(self):
            yield from (make_record(i) for i in range(5))
            raise error

    before = write_set(tmp_path / "set")
    for name, overwrite in (("new", False), ("set", True)):
        with pytest.raises(error):
            write_set(tmp_path / name, Interrupted(), overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert ShardSet(tmp_path / "set").manifest == before


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
    (tmp_path / "set.incomplete").mkdir()
    (tmp_path / "set.incomplete/shard-000007.tar").write_bytes(b"half")
    (tmp_path / "set").mkdir()
    write_set(tmp_path / "set")
    assert len(ShardSet(tmp_path / "set")) == 7
    assert not (tmp_path / "set/shard-000007.tar").exists()
