"""MRES JSONL files: images beside them, bad lines that do not end the reading."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pycocotools import mask as coco

from mres.errors import UserError
from mres.records import ImageRecord, RecordError
from mres.sources.mres_jsonl import mres_jsonl


def image(size: tuple[int, int], colour: str = "black") -> bytes:
    with io.BytesIO() as buffer:
        Image.new("RGB", size, colour).save(buffer, "PNG")
        return buffer.getvalue()


INSIDE, OUTSIDE = image((2, 1)), image((2, 1), "red")


def line(id_: str, image: Any = "images/a.jpg", **fields: Any) -> str:
    target = {
        "id": "t",
        "granularity": "object",
        "category": "cat",
        "box": [0, 0, 1, 1],
        "mask": {"size": [1, 2], "counts": "02"},
        "expressions": ["the cat"],
    }
    value = {"id": id_, "image": image, "width": 2, "height": 1, "split": "train", "source": "s", "targets": [target]}
    return json.dumps({**value, **fields})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data/images").mkdir(parents=True)
    (tmp_path / "data/images/a.jpg").write_bytes(INSIDE)
    (tmp_path / "outside.jpg").write_bytes(OUTSIDE)
    return tmp_path / "data"


def write(folder: Path, *lines: str | bytes) -> Path:
    path = folder / "records.jsonl"
    path.write_bytes(b"\n".join(text if isinstance(text, bytes) else text.encode() for text in lines))
    return path


def test_good_lines_become_records(folder: Path) -> None:
    source = mres_jsonl(write(folder, line("a"), "", line("b", split="val")), split=None)
    assert len(source) == 2
    assert [(record.id, record.image) for record in source] == [("a", INSIDE), ("b", INSIDE)]


def test_a_split_is_taken_and_the_rest_counted(folder: Path) -> None:
    source = mres_jsonl(write(folder, line("a"), line("b", split="val"), line("c")), split="val")
    assert [record.id for record in source] == ["b"]
    assert source.notes == {"records of other splits than 'val', left out": 2}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "records.jsonl:2: not JSON"),
        (b'{"id": "\xff"}', "records.jsonl:2: not JSON"),
        ("[" * 100_000, "records.jsonl:2: not JSON"),
        ("[1]", "records.jsonl:2: expected a JSON object, found list"),
        (line("x", image="images/none.jpg"), "records.jsonl:2: record 'x': field 'image': .*none.jpg.*No such file"),
        (line("x", image=7), "field 'image': found 7"),
        (line("x", image="../outside.jpg"), "'../outside.jpg' leaves the folder"),
        (line("x", image="/etc/hostname"), "'/etc/hostname' leaves the folder"),
        (line("x", image="a\0b"), "field 'image'"),
        (line("x", width=3), "records.jsonl:2: record 'x', target 't': field 'mask.size'"),
    ],
)
def test_a_bad_line_is_named_and_does_not_end_the_reading(bad: str | bytes, message: str, folder: Path) -> None:
    first, error, last = mres_jsonl(write(folder, line("a"), bad, line("b")), split=None)
    assert isinstance(first, ImageRecord)
    assert isinstance(last, ImageRecord)
    assert isinstance(error, RecordError)
    with pytest.raises(RecordError, match=message):
        raise error


def test_paths_outside_are_read_if_allowed(folder: Path) -> None:
    path = write(folder, line("a", image="../outside.jpg"), line("b", image=str(folder / "images/a.jpg")))
    assert [record.image for record in mres_jsonl(path, split=None, allow_outside=True)] == [OUTSIDE, INSIDE]


def test_a_missing_or_empty_file_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="no records at"):
        mres_jsonl(folder / "nothing.jsonl", split=None)
    with pytest.raises(UserError, match="holds no record"):
        mres_jsonl(write(folder, "", " "), split=None)


def test_the_documented_example_is_valid(folder: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/data-format.md").read_text()
    example = json.loads(page.split("```json\n")[1].split("```")[0])
    (folder / example["image"]).write_bytes(image((example["width"], example["height"])))
    (record,) = mres_jsonl(write(folder, json.dumps(example)), split="train")
    assert isinstance(record, ImageRecord)
    for target in record.targets:
        encoded = {"size": [target.mask.height, target.mask.width], "counts": target.mask.counts}
        assert tuple(coco.toBbox(encoded)) == target.box
