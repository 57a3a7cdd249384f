"""A run that is killed again and again, and goes on with other ranks and workers, sees the images it would have seen."""

import os
import random
import shutil
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from commands import wait_until
from tiny_data import make_record
from tiny_run import TRAIN, Done, Raise, lines, run, start, tiny_config, wait

from mres.shards.reader import ShardSet
from mres.shards.writer import WriteOptions, write_shards
from mres.sources.source import RecordSource

STEPS = 18  # of one set 3 epochs, of two 2 and a bit
LIVES = ((1, 0), (2, 1), (4, 0), (2, 2), (1, 1))  # (ranks, workers of each)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """9 images: other0 …"""
    folder = tmp_path_factory.mktemp("second") / "set"
    records = [replace(make_record(i), id=f"other{i}") for i in range(9)]
    write_shards(RecordSource.of(records, {"format": "tiny"}), folder, WriteOptions(4))
    return folder


def write_run(folder: Path, train: object) -> Path:
    config = tiny_config(Path("unused"))
    config["data"] |= {"train": train, "val": None, "shuffle_window": 3}
    config["train"]["steps"] = STEPS
    config["parallel"]["strategy"] = "ddp"
    config["checkpoint"] = {"every": 2, "async_save": False}  # a kill is to find the one that was due before it
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


@pytest.fixture(params=["one set", "two sets"])
def config(request: pytest.FixtureRequest, tmp_path: Path, tiny_shards: Path, second: Path) -> Path:
    mixture = [{"path": str(tiny_shards), "weight": 1}, {"path": str(second), "weight": 3}]
    return write_run(tmp_path, str(tiny_shards) if request.param == "one set" else mixture)


def live(folder: Path, config: Path, world_size: int, workers: int, *, until: Raise | None) -> Done:
    """Trains; where a rank is killed, the others are too, as launchers do it."""
    arguments = ["--config", str(config), f"data.workers={workers}"]
    processes = start(TRAIN, arguments, folder, world_size=world_size, raising=until)
    if until is not None:
        processes[until.rank].join(120)
        for process in processes:
            process.kill()
    return wait(processes, folder)


def processes_in(folder: Path) -> list[str]:
    """Ranks and their workers: those of which `folder` is the working folder."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if link.readlink() == folder.resolve():
                found.append(link.parts[2])
        except OSError:  # it has ended, or is somebody else's
            continue
    return found


@pytest.mark.exhaustive  # test_elastic_run.py goes on on other ranks, and compares the batches
def test_killed_at_random_and_gone_on_with_otherwise(tmp_path: Path, config: Path) -> None:
    shared = set(os.listdir("/dev/shm"))
    whole = run(TRAIN, ["--config", str(config), "run.name=whole"], tmp_path, world_size=1)
    assert whole.codes == [0], whole.output

    draws = random.Random(config.read_text().count("path"))
    deaths = sorted(draws.sample(range(3, STEPS), len(LIVES) - 1))
    for (world_size, workers), step in zip(LIVES, deaths, strict=False):
        until = Raise(step, signal.SIGKILL, rank=draws.randrange(world_size))
        died = live(tmp_path, config, world_size, workers, until=until)
        assert died.codes[until.rank] == -signal.SIGKILL, died.outputs
    last = live(tmp_path, config, *LIVES[-1], until=None)
    assert last.codes == [0], last.output
    assert f"going on at step {(deaths[-1] - 1) // 2 * 2} from " in last.output

    runs = tmp_path / "runs"
    trace = lines(runs / "whole" / "batches.jsonl")
    assert [line["step"] for line in trace] == list(range(1, STEPS + 1))
    assert lines(runs / "run" / "batches.jsonl") == trace
    check_epochs(trace)
    # Workers look every few seconds whether their rank is alive.
    wait_until(lambda: not processes_in(tmp_path), "the end of dead ranks' workers")
    wait_until(lambda: set(os.listdir("/dev/shm")) <= shared, "that named shared memory goes")


@pytest.mark.exhaustive
def test_the_list_of_broken_images_goes_on_with_the_run(tmp_path: Path, tiny_shards: Path) -> None:
    folder = Path(shutil.copytree(tiny_shards, tmp_path / "broken"))
    rows = ShardSet(folder).index_N
    for index in (3, 17):
        with (folder / f"shard-{index // 8:06d}.tar").open("r+b") as tar:
            tar.seek(int(rows[index]["offset"]) + int(rows[index]["image_offset"]) + 100)
            tar.write(b"damaged")
    config = write_run(tmp_path, str(folder))
    allowed = ["--config", str(config), "data.max_bad_fraction=0.1"]
    whole = run(TRAIN, [*allowed, "run.name=whole"], tmp_path)
    assert whole.codes == [0], whole.output
    for step in (3, 7):
        died = run(TRAIN, allowed, tmp_path, raising=Raise(step, signal.SIGKILL))
        assert died.codes == [-signal.SIGKILL]
    last = run(TRAIN, [*allowed, "data.workers=1"], tmp_path, world_size=2)
    assert last.codes == [0, 0], last.output
    one, other = tmp_path / "runs" / "whole", tmp_path / "runs" / "run"
    assert len(lines(one / "quarantine.jsonl")) == 2
    for name in ("quarantine.jsonl", "batches.jsonl"):
        assert (other / name).read_bytes() == (one / name).read_bytes()
    bad = [[line["bad_images"] for line in lines(folder / "metrics.jsonl")] for folder in (one, other)]
    assert bad[0] == bad[1] == sorted(bad[0])
    assert bad[0][-1] == 2


def check_epochs(trace: list[dict]) -> None:
    """One set: every image once an epoch. Two: as often as their weights say."""
    names = {name for line in trace for name in line["image_ids"]}
    for epoch in range(2):
        seen = Counter(name for line in trace if line["epoch"] == epoch for name in line["image_ids"])
        if any(name.startswith("other") for name in names):
            others = sum(number for name, number in seen.items() if name.startswith("other"))
            assert (seen.total(), others) == (31, round(31 * 27 / 49))
        else:
            assert seen == Counter({f"im{i}": 1 for i in range(22)})


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, tiny_shards: Path, second: Path) -> Path:
    """A folder with a run of two sets that was stopped at step 4."""
    folder = tmp_path_factory.mktemp("stopped")
    config = write_run(folder, [{"path": str(tiny_shards), "weight": 1}, {"path": str(second), "weight": 3}])
    done = run(TRAIN, ["--config", str(config)], folder, raising=Raise(3, signal.SIGTERM))
    assert done.codes == [75], done.output
    return folder


@pytest.mark.parametrize(
    ("overrides", "was", "now"),
    [
        (["data.shuffle_window=1024"], "windows of 3", "windows of 1024"),
        pytest.param(
            ["data.shuffle=uniform", "data.shuffle_window=1024"],
            "blocks, windows of 3",
            "uniform",
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(["data.mix_temperature=5"], "14 of 22 images", " of 22 images", marks=pytest.mark.exhaustive),
        (["data.images_per_batch=8"], "was 16 ", "is now 31;"),
        pytest.param(["run.seed=5"], "run.seed was 0", "is now 5;", marks=pytest.mark.exhaustive),
    ],
)
def test_another_order_is_refused(overrides: list[str], was: str, now: str, stopped: Path) -> None:
    before = (stopped / "runs/run/batches.jsonl").read_bytes()
    done = run(TRAIN, ["--config", str(stopped / "run.yaml"), *overrides], stopped, world_size=2)
    assert done.codes == [2, 2]
    (error,) = [line for text in done.outputs for line in text.splitlines() if "error: " in line]
    assert error.startswith("error: cannot resume at step 4: ")
    assert was in error
    assert now in error
    assert error.endswith("or start a new one (run.name=…) from its weights (checkpoint.init_from=…)")
    assert "Traceback" not in "".join(done.outputs)
    assert (stopped / "runs/run/batches.jsonl").read_bytes() == before
