"""MRES JSONL with its images as a user has it, and `tools/shard.py` as a user runs it."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from commands import ROOT, command
from PIL import Image
from pycocotools import mask as coco

COMMAND = [sys.executable, str(ROOT / "tools/shard.py")]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
BUILD = ("build", "jsonl", "out", "--records", "own.jsonl")


def shard(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`tools/shard.py` in `folder`."""
    return command(COMMAND[1], *arguments, folder=folder)


def done(folder: Path, *arguments: str) -> str:
    """What a command prints that must work and have nothing to complain of."""
    result = shard(folder, *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def refused(folder: Path, *arguments: str) -> str:
    """The one message of a command that must fail with exit code 2 and leave nothing behind."""
    before = sorted(folder.rglob("*"))
    result = shard(folder, *arguments)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(folder.rglob("*")) == before
    return result.stderr


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """A command in a process group of its own, as a terminal would start it; it waits for images that say `WAIT`."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tests/helpers/waiting_build.py"), *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def processes_in(folder: Path) -> set[int]:
    """Those of which `folder` is the working folder: a command's and its workers'."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if link.readlink() == folder.resolve():
                found.add(int(link.parts[2]))
        except OSError:  # it has ended, or is somebody else's
            continue
    return found


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def jpeg(seed: int, width: int = 48, height: int = 32) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    with io.BytesIO() as buffer:
        Image.fromarray(pixels).save(buffer, "JPEG")
        return buffer.getvalue()


def record(index: int) -> dict[str, Any]:
    """Record im0, im1 … with two expressions of one object; im3 is of the split val."""
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
    return {
        "id": f"im{index}",
        "image": f"images/{index}.jpg",
        "width": 48,
        "height": 32,
        "split": "val" if index == 3 else "train",
        "source": "own",
        "targets": [target],
    }


def write(folder: Path, records: list[dict[str, Any]]) -> None:
    (folder / "own.jsonl").write_text("".join(json.dumps(value) + "\n" for value in records))


def make_data(folder: Path, count: int) -> Path:
    """own.jsonl with `count` records and images/ in `folder`."""
    (folder / "images").mkdir(parents=True)
    for index in range(count):
        (folder / f"images/{index}.jpg").write_bytes(jpeg(index))
    write(folder, [record(i) for i in range(count)])
    return folder
