"""A real run that is stopped again and again, and goes on under another strategy on another number of ranks each time.

Weights, moments, moving average, schedule, counters and the place in the data go along: the course is that of the run
that was never stopped.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import hops
import pytest
import toy_training as toy
from tiny_run import TRAIN, Raise, _rank, lines, losses, write_config
from torch import Tensor

from mres.supervise.stop_request import PREEMPTED_EXIT
from mres.testing import run_distributed

OPTIONS = {
    "single": ["parallel.strategy=single"],
    "ddp": ["parallel.strategy=ddp"],
    "fsdp": ["parallel.strategy=fsdp"],
    "hsdp2": ["parallel.strategy=fsdp", "parallel.shard_ranks=2"],
    **{f"zero{stage}": ["parallel.strategy=zero", f"parallel.zero_stage={stage}"] for stage in (1, 2, 3)},
}
# Three steps each. 12 images a batch, which all of these numbers of ranks divide; an epoch has two steps.
CHAIN = [
    ("fsdp", 4), ("zero3", 2), ("ddp", 1), ("fsdp", 3), ("zero1", 2), ("single", 1), ("hsdp2", 4), ("zero2", 3),
]  # fmt: skip
# On as many ranks as the run that is not stopped, so that dropout, which is drawn rank by rank, is the same.
DROPOUT_CHAIN = [("fsdp", 2), ("ddp", 2), ("zero3", 2), ("zero1", 2), ("hsdp2", 2), ("fsdp", 2), ("zero2", 2)]
LENGTH = 3
COMMON = ["data.images_per_batch=12", "optim.ema_decay=0.9", "checkpoint.keep=99"]
pytestmark = pytest.mark.slow


def rank(arguments: list[str], folder: Path, raising: Raise | None) -> None:
    _rank(TRAIN, arguments, folder, int(os.environ["RANK"]), {"OMP_NUM_THREADS": "1"}, raising)


def train(folder: Path, config: Path, name: str, kind: str, size: int, steps: int, stop: int, *more: str) -> str:
    """One start of the run `name`, which ends behind step `stop`: by a signal to one rank, or because it is done.

    Returns what it said.
    """
    # A signal that comes while step n is logged is agreed on in step n+1.
    raising = Raise(stop - 1, signal.SIGTERM, rank=size - 1) if stop < steps else None
    arguments = ["--config", str(config), f"run.name={name}", f"train.steps={steps}", *COMMON, *OPTIONS[kind], *more]
    codes = hops.hop(size, rank, arguments, folder, raising)
    said = (folder / "out-0.txt").read_text()
    assert set(codes) == {PREEMPTED_EXIT if stop < steps else 0}, said
    return said


def chain(folder: Path, config: Path, name: str, links: list[tuple[str, int]], *more: str) -> None:
    for number, (kind, size) in enumerate(links):
        said = train(folder, config, name, kind, size, LENGTH * len(links), LENGTH * (number + 1), *more)
        assert not number or f"going on at step {LENGTH * number} from" in said, said


def run_all(folder: Path, config: Path) -> None:
    hops.preload()
    steps, fewer = LENGTH * len(CHAIN), LENGTH * len(DROPOUT_CHAIN)
    train(folder, config, "whole", "single", 1, steps, steps)
    chain(folder, config, "chain", CHAIN)
    dropout = "model.dropout=0.1"
    train(folder, config, "whole-dropout", "zero2", 2, fewer, fewer, dropout)
    chain(folder, config, "chain-dropout", DROPOUT_CHAIN, dropout)
    train(folder, config, "stopped-dropout", "zero2", 2, fewer, 10, dropout)
    train(folder, config, "stopped-dropout", "zero2", 2, fewer, fewer, dropout)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_shards: Path) -> Path:
    folder = tmp_path_factory.mktemp("elastic")
    config = write_config(folder, tiny_shards)
    config.write_text(config.read_text().replace("dropout: 0.1", "dropout: 0.0"))
    run_distributed(run_all, 1, folder, config, timeout_s=3000)
    return folder / "runs"


def last_state(run: Path) -> dict[str, Tensor]:
    return toy.read(max((run / "checkpoints").glob("step-????????")))


@pytest.mark.parametrize("kind", ["", "-dropout"])
def test_the_course_is_that_of_a_run_which_was_not_stopped(kind: str, runs: Path) -> None:
    whole, chained = losses(runs / f"whole{kind}"), losses(runs / f"chain{kind}")
    assert len(whole) == LENGTH * len(DROPOUT_CHAIN if kind else CHAIN) >= 20
    for one, other in zip(whole, chained, strict=True):
        assert other == pytest.approx(one, rel=1e-4), one["step"]
        assert (one["lr"], one["expressions_seen"]) == (other["lr"], other["expressions_seen"])
    batches = [lines(runs / f"{name}{kind}" / "batches.jsonl") for name in ("whole", "chain")]
    assert batches[0] == batches[1]


@pytest.mark.parametrize("kind", ["", "-dropout"])
@pytest.mark.parametrize("what", ["model", "ema"])
def test_weights_and_their_average_end_where_they_would_have(what: str, kind: str, runs: Path) -> None:
    whole, chained = last_state(runs / f"whole{kind}"), last_state(runs / f"chain{kind}")
    assert whole.keys() == chained.keys()
    moments = [{n: t for n, t in state.items() if n.startswith("optim.")} for state in (whole, chained)]
    tensors = [
        {n.replace(what, "model", 1): t for n, t in state.items() if n.startswith(what)} for state in (whole, chained)
    ]
    assert toy.farthest_weights(tensors[0] | moments[0], tensors[1] | moments[1]) < 1e-3


def test_the_same_strategy_on_as_many_ranks_goes_on_bit_for_bit(runs: Path) -> None:
    assert losses(runs / "stopped-dropout") == losses(runs / "whole-dropout")
    toy.assert_same(last_state(runs / "stopped-dropout"), last_state(runs / "whole-dropout"))


def test_dropout_was_on(runs: Path) -> None:
    dropped, plain = losses(runs / "whole-dropout")[0], losses(runs / "whole")[0]
    assert abs(dropped["loss"] - plain["loss"]) > 1e-3 * plain["loss"]
