"""Ranks that would not run the same are told so before the start: all of them, with the ranks and keys named."""

import json
import re
from pathlib import Path

import pytest
from tiny_run import TRAIN, start, wait, write_config

from mres.supervise.agreement import differences
from mres.supervise.heartbeat import read_beats
from mres.testing import free_port


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (["2.7", "2.7", "2.7"], None),
        (["2.7", "2.7", "2.6"], "torch: rank 2 has 2.6, ranks 0-1 have 2.7"),
        (["2.7", "2.6", "2.7", "2.6", "2.7"], "torch: ranks 1, 3 have 2.6, ranks 0, 2, 4 have 2.7"),
        (["2.7", None, "2.7"], "torch: rank 1 has None, ranks 0, 2 have 2.7"),
        (["a", "b", "c"], "torch: rank 0 has a, rank 1 has b, rank 2 has c"),
    ],
)
def test_ranks_of_the_same_value_are_named_together(values: list[str | None], line: str | None) -> None:
    all_ranks = [{"same": "1", "torch": value} for value in values]
    assert differences(all_ranks) == ([line] if line else [])


def test_a_key_that_a_rank_does_not_have_is_a_difference() -> None:
    assert differences([{"a": "1"}, {"b": "2"}]) == [
        "a: rank 0 has 1, rank 1 has None",
        "b: rank 0 has None, rank 1 has 2",
    ]


@pytest.mark.slow
def test_ranks_of_one_run_with_other_configs(tmp_path: Path, tiny_shards: Path) -> None:
    config = write_config(tmp_path, tiny_shards)
    arguments = ["--config", str(config), "parallel.strategy=zero", "parallel.ds_config=ds.json"]
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
        (tmp_path / str(rank) / "ds.json").write_text(json.dumps({"steps_per_print": rank + 1}))
    processes = [
        start(TRAIN, [*arguments, own], tmp_path / str(rank), environ=variables)[0]
        for rank, (own, variables) in enumerate(zip(["optim.lr=0.001", "train.steps=9"], environment(2), strict=True))
    ]
    for rank, process in enumerate(processes):
        done = wait([process], tmp_path / str(rank))
        assert done.codes == [2], done.output
        if rank == 0:  # of one machine, it speaks for all
            assert "config optim.lr: rank 0 has 0.001, rank 1 has 0.002" in done.output
            assert re.search(r"ds_config \(SHA-256 of the file\): rank 0 has [0-9a-f]{64}, rank 1 has", done.output)
            assert "planned steps: rank 0 has 20, rank 1 has 9" in done.output
            assert "Traceback" not in done.output
        assert not (tmp_path / str(rank) / "runs" / "run" / "metrics.jsonl").exists()
        assert "the ranks do not agree" in read_beats(tmp_path / str(rank) / "runs" / "run")[rank].note


def environment(world_size: int) -> list[dict[str, str]]:
    """What a launcher would give each rank."""
    shared = {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1"}
    shared["MASTER_PORT"] = str(free_port())
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]
