"""`tools/shard.py` as people run it: what it makes, and what bad input is told."""

import json
from pathlib import Path
from typing import Any

import pytest
from commands import light_commands
from made_jsonl import BUILD, jpeg, record, refused, shard, write
from PIL import Image

from mres.sources.registry import SOURCES


def test_own_data_in_three_commands(data: Path) -> None:
    (data / "images/4.jpg").write_bytes(jpeg(4)[:-200])
    built = shard(data, *BUILD, "--images-per-shard", "2", "--split", "train", "--max-bad-fraction", "0.25")
    assert (built.returncode, built.stderr) == (0, "")
    assert "records of other splits than 'train', left out: 1" in built.stdout
    assert "3 images in 2 shards" in built.stdout
    assert "1 bad records left out (listed in quarantine.jsonl)" in built.stdout
    (listed,) = (data / "out/quarantine.jsonl").read_text().splitlines()
    assert "own.jsonl: record 'im4': image: cannot be decoded: " in json.loads(listed)["error"]

    table = shard(data, "info", "out").stdout
    assert "3 (train 3)" in table
    assert "cat" in table
    described = json.loads(shard(data, "info", "out", "--json").stdout)
    assert described["counts"]["expressions_by_kind"]["object"] == {"": 3, "category": 3}
    assert described["expressions_per_image"] == {"min": 2, "median": 2.0, "max": 2}
    assert described["source"]["records"] == "own.jsonl"

    good = shard(data, "verify", "out")
    assert good.returncode == 0
    tar = data / "out/shard-000001.tar"
    content = bytearray(tar.read_bytes())
    content[1000] ^= 4
    tar.write_bytes(content)
    bad = shard(data, "verify", "out")
    assert bad.returncode == 1
    assert bad.stdout.startswith("damaged: out/shard-000001.tar: 00000002: damaged")
    assert len(bad.stdout.splitlines()) == 1


def spoil(data: Path, **fields: Any) -> None:
    write(data, [{**record(0), **fields}, *(record(i) for i in range(1, 5))])


def truncate_image(data: Path) -> None:
    (data / "images/0.jpg").write_bytes(jpeg(0)[:-200])


def empty_expression(data: Path) -> None:
    spoil(data, targets=[{**record(0)["targets"][0], "expressions": [""]}])


def mask_of_another_size(data: Path) -> None:
    spoil(data, targets=[{**record(0)["targets"][0], "mask": {"size": [48, 32], "counts": "`h0"}}])


def image_of_another_size(data: Path) -> None:
    Image.new("RGB", (50, 32)).save(data / "images/0.jpg")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (truncate_image, "own.jsonl: record 'im0': image: cannot be decoded: image file is truncated"),
        (
            lambda data: (data / "images/0.jpg").unlink(),
            "own.jsonl:1: record 'im0': field 'image': 'images/0.jpg' cannot",
        ),
        (image_of_another_size, "own.jsonl: record 'im0': image: it has 50x32 pixels, the record says 48x32"),
        (mask_of_another_size, "own.jsonl:1: record 'im0', target 'cat': field 'mask.size': found [48, 32], expected"),
        (empty_expression, "own.jsonl:1: record 'im0', target 'cat': field 'expressions': found '', expected text"),
        (lambda data: spoil(data, targets=[]), "field 'targets': found [], expected a list of at least one target"),
        (lambda data: spoil(data, colour="red"), "unknown field 'colour'; allowed: height, id,"),
    ],
)
def test_a_bad_record_is_named(break_it, message: str, data: Path) -> None:
    break_it(data)
    error = refused(data, *BUILD)
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("build", "jsonl", "out", "--records", "none.jsonl"), "no records at 'none.jsonl'"),
        (("build", "jsonl", "images", "--records", "own.jsonl"), "exists and is not empty; give another folder"),
        (("build", "jsonl", "images", "--records", "own.jsonl", "--overwrite"), "is not a shard set"),
        ((*BUILD, "--images-per-shard", "0"), "images per shard: 0; allowed: 1 to"),
        ((*BUILD, "--max-bad-fraction", "1.5"), "max bad fraction: 1.5; allowed: 0 to below 1"),
        (("build", "cocoo", "out"), "invalid choice: 'cocoo'"),
        (("build", "coco", "out"), "the following arguments are required: --annotations, --images, --split"),
        (
            ("build", "coco", "out", "--annotations", "own.jsonl", "--images", "images", "--split", "val"),
            "'own.jsonl': not JSON",
        ),
        (("info", "nowhere"), "no shard set at 'nowhere': the folder does not exist"),
        (("verify", "empty"), "no shard set at 'empty': the folder is empty"),
        (("info", "images"), "no shard set at 'images': it has no manifest.json"),
        (("verfy", "out"), "invalid choice: 'verfy'"),
    ],
)
def test_a_wrong_command_says_what_is_wrong(arguments: tuple[str, ...], message: str, data: Path) -> None:
    (data / "empty").mkdir()
    assert message in refused(data, *arguments)


def test_errors_and_help_import_nothing_heavy(tmp_path: Path) -> None:
    helps = [[], *([name] for name in ("build", "info", "verify", "leakcheck", "filter", "merge"))]
    helps += [["build", name] for name in SOURCES]
    mistakes = [["info", "nowhere"], ["build", "jsonl", "out", "--records", "none.jsonl"]]
    commands = [*([*words, "--help"] for words in helps), *mistakes]
    for words, (code, said, heavy) in zip(commands, light_commands("tools/shard.py", commands, tmp_path), strict=True):
        assert code == (0 if "--help" in words else 2), words
        assert set(heavy) <= {"pycocotools"}, words
        assert ("usage: shard.py" in said) == ("--help" in words), words
