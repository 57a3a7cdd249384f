"""tools/bench.py measures every side and its claims follow from what it printed; how large, a noisy machine cannot say."""

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks import checkpoint, data
from benchmarks.limit import Decodable
from benchmarks.memory import made_set
from benchmarks.synthetic import made_source
from benchmarks.timing import batch_rate, medians
from commands import command
from tiny_model import outline

from mres.errors import UserError
from mres.model.unires.config import UniresConfig
from mres.shards.reader import ShardSet
from mres.stream.transforms import fit
from mres.testing import run_distributed

TINY = {
    "data": ["--size", "tiny", "--num-images", "32", "--images", "2", "--k", "3", "--rounds", "1"],
    "order": ["--num-images", "3000", "--ranks", "4", "--rounds", "1"],
    "memory": ["--size", "tiny", "--num-images", "70", "--images", "2", "--k", "2", "--batches", "20"],
    "grouping": ["--rounds", "1", "--images", "1", "--k", "2"],
    "loop": ["--rounds", "1", "--images", "1", "--k", "2"],
    "seam": ["--rounds", "1", "--images", "2", "--k", "2"],
}


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return command("tools/bench.py", *arguments)


def found(name: str) -> dict[str, Any]:
    done = bench(name, "--json", *TINY[name])
    assert done.returncode == 0, done.stderr
    value: dict[str, Any] = json.loads(done.stdout)
    for claim in value["claims"].values():
        sign, bound = claim["target"].split()
        assert claim["met"] == (claim["figure"] >= float(bound) if sign == ">=" else claim["figure"] <= float(bound))
    return value


def figures(value: dict[str, Any]) -> dict[str, float]:
    return {name: claim["figure"] for name, claim in value["claims"].items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "section", "ratio"),
    [
        pytest.param("grouping", "expressions_per_s", "grouped / pairs", marks=pytest.mark.exhaustive),
        ("loop", "seconds_a_step", "mres / bare"),
        pytest.param("seam", "seconds_a_step", "mres / by hand", marks=pytest.mark.exhaustive),
    ],
)
def test_training_against_its_reference(name: str, section: str, ratio: str) -> None:
    value = found(name)
    mine, reference = value[section].values()
    assert mine > 0
    assert figures(value) == {ratio: pytest.approx(mine / reference)}


@pytest.mark.exhaustive
@pytest.mark.slow
def test_data_against_what_is_usual_and_the_limit() -> None:
    value = found("data")
    for workers in ("one worker", "two workers"):
        rates = value[workers]
        assert set(rates) == {"mres", "usual", "usual, masks by nearest", "mosaicml-streaming", *data.LIMITS}
        assert all(rate > 0 for rate in rates.values())
        ratios = {name: figure for name, figure in figures(value).items() if name.endswith(workers)}
        assert ratios == {
            f"mres / usual, {workers}": pytest.approx(rates["mres"] / rates["usual"]),
            **{
                f"mres / limit, masks by {whose}, {workers}": pytest.approx(
                    rates["mres"] / rates[f"limit: JPEG, masks by {whose}"]
                )
                for whose in ("mres", "pycocotools")
            },
            f"mres / mosaicml-streaming, {workers}": pytest.approx(rates["mres"] / rates["mosaicml-streaming"]),
        }
    apart = value["levels of 255 between outputs"]
    assert 0 < apart["image, largest"] <= apart["image, largest allowed"] == 8  # decoded at a quarter
    assert 0 < apart["masks, against the exact mean of whole masks, largest"] <= 0.51


@pytest.mark.exhaustive
@pytest.mark.slow
def test_order_at_any_position() -> None:
    value = found("order")
    slots, costs = value["seconds to the first batch's slots"], value["cost of a rank's order, its first slots drawn"]
    claims = figures(value)
    assert claims["slots at 90% / at 0%"] == pytest.approx(slots["at 90% of an epoch"] / slots["at 0% of an epoch"])
    assert claims["seconds to start"] == costs["seconds"] > 0
    assert 0 < costs["MB allocated"] <= costs["MB allocated, peak"] == claims["MB allocated, peak"]
    assert value["quality of shuffle=uniform"].keys() == value["quality of shuffle=blocks"].keys()


@pytest.mark.exhaustive
@pytest.mark.slow
def test_memory_of_workers_and_what_a_kill_leaves() -> None:
    value = found("memory")
    idle, late = value["a worker that loads nothing, same modules"], value["a worker after all of them"]
    assert all(0 < idle[name] < late[name] for name in ("USS", "PSS"))
    assert figures(value)["PSS above, MB"] == pytest.approx(late["PSS"] - idle["PSS"])
    left = value["left by kill -9"]
    assert (left["names in /dev/shm"], left["workers alive"]) == (0, 0)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_saves_and_loads_are_timed_and_leave_nothing(tmp_path: Path) -> None:
    arguments = argparse.Namespace(size="tiny", rounds=1, threads=1)
    measured, _ = run_distributed(checkpoint.measure, 2, "fsdp", tmp_path / "saves", arguments)
    assert all(measured[name] > 0 for name in ("stall", "background", "synchronous", "load", "copy"))
    assert measured["stall"] <= measured["background"]
    parameters = sum(p.numel() for p in outline(UniresConfig(size="tiny")).parameters())
    assert 12 * parameters <= measured["bytes"] <= 15 * parameters, "float32 weights and two moments; small tensors"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_people_read_what_was_measured_and_what_is_claimed_of_it() -> None:
    done = bench("loop", *TINY["loop"])
    assert "seconds_a_step\n" in done.stdout
    assert any("<= 1.03: " in line for line in done.stdout.splitlines()[-1:])


def test_a_set_whose_index_repeats_rows_is_a_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.memory._DIFFERENT", 6)
    shards = ShardSet(made_set(tmp_path / "set", 20))
    assert len(shards) == 20
    assert sum(shards.manifest.counts.targets.values()) == pytest.approx(20 * 32, abs=2)
    ids = [shards.read(number).id for number in range(20)]
    assert ids == [f"made-{number % 6:07d}" for number in range(20)]
    assert int(shards.num_expressions_N.sum()) == 20 * 64


def test_an_image_that_is_not_the_usual_pipelines_ends_the_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    apart = {"image": np.array([0, 3]), "masks": np.zeros(2)}
    monkeypatch.setattr(data, "_levels_apart", lambda setup, item: apart)
    item = Decodable(made_source(1)[0], fit(640, 480, 448, "letterbox"), [])
    with pytest.raises(UserError, match="by up to 3 levels, at most 2 are allowed"):
        data._differences(None, [item])


def test_what_is_started_before_the_skipped_batches_have_come_is_not_counted() -> None:
    assert batch_rate(iter(range(1000)), skip=10) > 0
    with pytest.raises(AssertionError):
        batch_rate(iter(range(3)), skip=3)


def test_a_median_leaves_out_the_first_round() -> None:
    values = iter([100.0, 1.0, 3.0, 2.0])
    assert medians({"one": lambda: next(values)}, rounds=3) == {"one": 2.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["loop", "--k", "0"], "--k 0 must be at least 1"),
        (["data", "--num-images", "0"], "--num-images 0 must be at least 1"),
    ],
)
def test_a_count_of_zero_is_refused(arguments: list[str], message: str) -> None:
    done = bench(*arguments)
    assert (done.returncode, done.stderr) == (2, f"error: {message}\n")


def test_an_option_that_a_bench_has_no_use_for_is_refused() -> None:
    done = bench("order", "--k", "3")
    assert done.returncode == 2
    assert "unrecognized arguments: --k 3" in done.stderr
