"""`shard.py build` with workers, sizes and layouts; killed, interrupted and out of disk it goes on where it was."""

import json
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import PATIENCE_S, wait_until
from made_jsonl import (
    BUILD,
    COMMAND,
    ENVIRONMENT,
    content,
    done,
    jpeg,
    make_data,
    processes_in,
    record,
    refused,
    shard,
    start,
    write,
)
from scenes import SceneOptions, scenes
from waiting_build import WAIT

from mres.shards.reader import ShardSet

pytestmark = pytest.mark.slow

RECORDS, STUCK = 10, (5, 8)  # in shards of 2: two workers stand still, in the shards 2 and 4 of 0 … 4
MANY = (*BUILD, "--images-per-shard", "2", "--workers", "2")


def test_workers_and_layouts_hold_the_same_records(data: Path) -> None:
    for name, options in {"a": ("--workers", "0"), "b": ("--workers", "2"), "c": ("--format", "mds")}.items():
        printed = done(data, "build", "jsonl", name, *BUILD[3:], "--images-per-shard", "2", *options)
        assert (
            printed
            == f"{name}: 5 images in 3 shards, 10 object expressions of 5 masks, 0 part expressions of 0 masks\n"
        )
        assert done(data, "verify", name) == f"{name}: every hash fits, every record is readable\n"
    assert content(data / "a") == content(data / "b")
    tar, mds = ShardSet(data / "a"), ShardSet(data / "c")
    assert [mds.read(i) for i in range(5)] == [tar.read(i) for i in range(5)]
    assert all(shard.name.endswith(".mds") for shard in mds.manifest.shards)


def test_larger_images_are_made_smaller(data: Path) -> None:
    done(data, *BUILD, "--max-side", "24", "--quality", "80")
    shards = ShardSet(data / "out")
    assert {(shards.read(i).width, shards.read(i).height) for i in range(5)} == {(24, 16)}
    assert shards.read(2).targets[0].mask.width == 24
    assert shards.read(2).targets[0].box == (1, 2, 4.5, 8)
    assert (shards.manifest.options["max_side"], shards.manifest.options["quality"]) == (24, 80)
    done(data, "verify", "out")


def test_scenes_are_drawn_by_workers_in_their_order(tmp_path: Path) -> None:
    arguments = ("--num-images", "4", "--seed", "3", "--split", "val", "--image-size", "64", "--workers", "2")
    done(tmp_path, "build", "scenes", "set", *arguments)
    shards = ShardSet(tmp_path / "set")
    expected = scenes(4, seed=3, split="val", options=SceneOptions(image_size=64, relational_share=0.25))
    assert [shards.read(index) for index in range(4)] == list(expected)


@pytest.fixture
def stuck(tmp_path: Path) -> Iterator[Path]:
    """10 records; the images of two are not there yet, and a build waits for them until it is killed."""
    make_data(tmp_path, RECORDS)
    for index in STUCK:
        (tmp_path / f"images/{index}.jpg").write_bytes(WAIT)
    yield tmp_path
    for process in processes_in(tmp_path):
        os.kill(process, signal.SIGKILL)


def mend(folder: Path) -> None:
    for index in STUCK:
        (folder / f"images/{index}.jpg").write_bytes(jpeg(index))


def pieces(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "out.incomplete/result").glob("piece-*.json"))


def start_stuck(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """A build of which all shards but two are finished, and both workers are at those."""
    process = start(folder, *arguments)
    wait_until(lambda: len(pieces(folder)) == 3 or process.poll() is not None, "three shards")
    assert process.poll() is None, process.communicate()
    return process


def kill_all(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)


def kill_parent(process: subprocess.Popen[str]) -> None:
    process.kill()


def terminate_parent(process: subprocess.Popen[str]) -> None:
    process.terminate()


def ctrl_c(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGINT)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sets tar and mds of the same records, whose builds nothing has disturbed."""
    folder = make_data(tmp_path_factory.mktemp("whole") / "data", RECORDS)
    for layout in ("tar", "mds"):
        done(folder, "build", "jsonl", layout, *MANY[3:], "--format", layout)
    return folder


@pytest.mark.parametrize(
    ("end", "layout"),
    [
        (kill_all, "tar"),
        pytest.param(kill_all, "mds", marks=pytest.mark.exhaustive),
        (kill_parent, "tar"),
        pytest.param(terminate_parent, "tar", marks=pytest.mark.exhaustive),
        (ctrl_c, "tar"),
    ],
)
def test_a_build_that_was_ended_goes_on(end: Callable, layout: str, stuck: Path, whole: Path) -> None:
    command = (*MANY, "--format", layout)
    process = start_stuck(stuck, *command)
    assert len(processes_in(stuck)) == 3
    end(process)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == (
        130 if end is ctrl_c else -signal.SIGTERM if end is terminate_parent else -signal.SIGKILL
    )
    assert "Traceback" not in err
    if end is ctrl_c:
        assert err.splitlines()[-1] == "interrupted"
    wait_until(lambda: not processes_in(stuck), "the workers' end")

    mend(stuck)
    files = {p: p.stat() for p in (stuck / "out.incomplete/result").glob("shard-*") if p.suffix == f".{layout}"}
    again = shard(stuck, *command)
    assert (again.returncode, again.stderr) == (0, "going on: 3 of 5 shards are finished\n")
    for path, before in files.items():
        now = (stuck / "out" / path.name).stat()
        unfinished = path.stem in ("shard-000002", "shard-000004")
        assert unfinished or (now.st_ino, now.st_mtime_ns) == (before.st_ino, before.st_mtime_ns), "made again"

    assert content(stuck / "out") == content(whole / layout)
    assert sorted(path.name for path in stuck.iterdir()) == ["images", "out", "own.jsonl"]


def test_two_builds_into_one_folder_are_refused(stuck: Path) -> None:
    process = start_stuck(stuck, *MANY)
    second = shard(stuck, *MANY)
    assert second.returncode == 2
    assert second.stderr.startswith("error: another process is making ")
    assert second.stderr.count("\n") == 1
    assert len(pieces(stuck)) == 3
    kill_all(process)
    process.communicate(timeout=PATIENCE_S)


def test_ctrl_c_before_the_first_shard_leaves_nothing_behind(data: Path) -> None:
    """The last image is not there yet: the build stands still in its middle until it is interrupted."""
    (data / "images/late.jpg").write_bytes(WAIT)
    write(data, [record(0), {**record(1), "image": "images/late.jpg"}])
    before = sorted(data.rglob("*"))
    process = start(data, *BUILD)
    wait_until((data / "out.incomplete/result/shard-000000.tar").exists, "the first record")
    ctrl_c(process)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (130, "interrupted\n")
    assert sorted(data.rglob("*")) == before
    assert not processes_in(data)


@pytest.mark.parametrize(
    ("layout", "workers"),
    [
        ("tar", "2"),
        pytest.param("tar", "0", marks=pytest.mark.exhaustive),
        pytest.param("mds", "2", marks=pytest.mark.exhaustive),
    ],
)
def test_a_full_disk_is_said_once_and_the_build_goes_on(layout: str, workers: str, data: Path) -> None:
    """The file size limit stands for the disk: the third shard alone does not fit."""
    (data / "images/4.jpg").write_bytes(jpeg(4, 480, 320))
    write(data, [*(record(i) for i in range(4)), {**record(4), "width": 480, "height": 320, "targets": large_target()}])
    command = (*BUILD, "--images-per-shard", "2", "--workers", workers, "--format", layout)
    limited = subprocess.run(
        [*COMMAND, *command], cwd=data, env=ENVIRONMENT, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)),
    )  # fmt: skip
    assert limited.returncode == 2, limited.stderr
    assert "Traceback" not in limited.stderr
    (error,) = [line for line in limited.stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith(f"error: writing '{data}/out' failed: File too large: '{data}/out.incomplete")
    assert "make room" in error
    finished = len(pieces(data))
    assert finished == 2 or (workers == "2" and finished == 1), "all but those that were being made"
    assert not (data / "out").exists()
    assert shard(data, *command).stderr == f"going on: {finished} of 3 shards are finished\n"
    assert len(ShardSet(data / "out")) == 5


def large_target() -> list[dict]:
    import numpy as np
    from pycocotools import mask as coco

    mask = coco.encode(np.ones((320, 480), np.uint8, order="F"))["counts"].decode()
    return [{**record(4)["targets"][0], "mask": {"size": [320, 480], "counts": mask}}]


def test_more_bad_records_than_allowed_are_refused_until_they_are_repaired(data: Path) -> None:
    spoilt = {index: (data / f"images/{index}.jpg").read_bytes() for index in (0, 1)}
    for index in spoilt:
        (data / f"images/{index}.jpg").unlink()
    lenient = (*BUILD, "--max-bad-fraction", "0.2", "--images-per-shard", "2", "--workers", "0")
    result = shard(data, *lenient)
    error = result.stderr
    assert (result.returncode, (data / "out").exists()) == (2, False)
    assert "too many bad records: at least 2 of 5, allowed is a share of 0.2 (--max-bad-fraction)" in error
    assert "'im0'" in error
    assert "'im1'" in error
    (data / "images/0.jpg").write_bytes(spoilt[0])
    printed = shard(data, *lenient)
    assert printed.returncode == 0, printed.stderr
    assert "1 bad records left out (listed in quarantine.jsonl)" in printed.stdout
    (listed,) = (data / "out/quarantine.jsonl").read_text().splitlines()
    assert "'im1'" in json.loads(listed)["error"]


def test_overwriting_waits_for_the_new_set(data: Path) -> None:
    done(data, *BUILD)
    before = content(data / "out")
    assert "exists and is not empty" in refused(data, *BUILD)
    (data / "images/2.jpg").rename(data / "images/away.jpg")
    assert "'im2'" in refused(data, *BUILD, "--overwrite")
    assert content(data / "out") == before
    (data / "images/away.jpg").rename(data / "images/2.jpg")
    done(data, *BUILD, "--overwrite", "--images-per-shard", "3")
    assert len(ShardSet(data / "out").manifest.shards) == 2
