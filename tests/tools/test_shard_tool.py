"""`tools/shard.py` as people run it: what it makes, and what bad input is told."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from mres.shards.reader import ShardSet
from mres.sources.scenes import SceneOptions, scenes

REPOSITORY = Path(__file__).parents[2]
COMMAND = [sys.executable, str(REPOSITORY / "tools/shard.py")]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def shard(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)


def refused(folder: Path, *arguments: str) -> str:
    """The one message of a command that must fail with exit code 2 and leave nothing behind."""
    before = sorted(folder.rglob("*"))
    result = shard(folder, *arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert sorted(folder.rglob("*")) == before
    return result.stderr


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    with io.BytesIO() as buffer:
        Image.fromarray(pixels).save(buffer, "JPEG")
        return buffer.getvalue()


def record(index: int) -> dict[str, Any]:
    mask_HW = np.zeros((32, 48), np.uint8, order="F")
    mask_HW[4:20, index : index + 9] = 1
    target = {
        "id": "cat",
        "granularity": "object",
        "category": "cat",
        "box": [index, 4, 9, 16],
        "mask": {"size": [32, 48], "counts": coco.encode(mask_HW)["counts"].decode()},
        "expressions": [{"text": "the cat", "kind": "category"}, "cat"],
    }
    split = "val" if index == 3 else "train"
    return {
        "id": f"im{index}",
        "image": f"images/{index}.jpg",
        "width": 48,
        "height": 32,
        "split": split,
        "source": "own",
        "targets": [target],
    }


def write(folder: Path, records: list[dict[str, Any]]) -> None:
    (folder / "own.jsonl").write_text("".join(json.dumps(value) + "\n" for value in records))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with own.jsonl (5 records, one of them in the split val) and images/."""
    (tmp_path / "images").mkdir()
    for index in range(5):
        (tmp_path / f"images/{index}.jpg").write_bytes(jpeg(index))
    write(tmp_path, [record(i) for i in range(5)])
    return tmp_path


BUILD = ("build", "jsonl", "out", "--records", "own.jsonl")


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


def test_more_bad_records_than_allowed_are_refused(data: Path) -> None:
    for index in (0, 1):
        (data / f"images/{index}.jpg").unlink()
    error = refused(data, *BUILD, "--max-bad-fraction", "0.2")
    assert "too many bad records: at least 2 of 5, allowed is a share of 0.2" in error
    assert "'im0'" in error
    assert "'im1'" in error


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
            "cannot read 'own.jsonl' as a COCO file",
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


def test_errors_and_help_import_nothing_heavy(data: Path) -> None:
    (data / "images/0.jpg").unlink()
    for arguments in (("--help",), BUILD, ("info", "nowhere")):
        result = subprocess.run(
            [sys.executable, "-X", "importtime", *COMMAND[1:], *arguments],
            cwd=data,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
        )
        imported = {line.rsplit("|", 1)[-1].strip() for line in result.stderr.splitlines()}
        assert "argparse" in imported
        assert not imported & {"torch", "webdataset", "timm", "open_clip", "matplotlib"}


def test_ctrl_c_leaves_nothing_behind(data: Path) -> None:
    """The last image is a named pipe: the build stands still in its middle until it is interrupted."""
    os.mkfifo(data / "images/pipe.jpg")
    write(data, [record(0), {**record(1), "image": "images/pipe.jpg"}])
    before = sorted(data.rglob("*"))
    process = subprocess.Popen([*COMMAND, *BUILD], cwd=data, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    with (data / "images/pipe.jpg").open("wb"):  # opens once the build has opened the other end
        assert (data / "out.incomplete/shard-000000.tar").exists()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    assert process.stderr.read() == "interrupted\n"
    process.stderr.close()
    assert sorted(data.rglob("*")) == before


def test_scenes_are_drawn_by_workers_in_their_order(tmp_path: Path) -> None:
    arguments = ("--num-images", "4", "--seed", "3", "--split", "val", "--image-size", "64", "--workers", "2")
    built = shard(tmp_path, "build", "scenes", "set", *arguments)
    assert (built.returncode, built.stderr) == (0, "")
    shards = ShardSet(tmp_path / "set")
    expected = scenes(4, seed=3, split="val", options=SceneOptions(image_size=64, relational_share=0.25))
    assert [shards.read(index) for index in range(4)] == list(expected)
