"""A real run that is stopped again and again, and goes on under another strategy on another number of ranks each time.

Weights, moments, moving average, schedule, counters and the place in the data go along: the course is that of the run
that was never stopped.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import toy_training as toy
from tiny_run import TRAIN, Raise, lines, losses, run, write_config
from torch import Tensor

from mres.supervise.stop_request import PREEMPTED_EXIT

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


def train(folder: Path, config: Path, name: str, kind: str, size: int, steps: int, stop: int, *more: str) -> str:
    """One start of the run `name`, which ends behind step `stop`: by a signal to one rank, or because it is done.

    Returns what it said.
    """
    # A signal that comes while step n is logged is agreed on in step n+1.
    raising = Raise(stop - 1, signal.SIGTERM, rank=size - 1) if stop < steps else None
    arguments = ["--config", str(config), f"run.name={name}", f"train.steps={steps}", *COMMON, *OPTIONS[kind], *more]
    done = run(TRAIN, arguments, folder, world_size=size, raising=raising)
    assert set(done.codes) == {PREEMPTED_EXIT if stop < steps else 0}, done.output
    return done.output


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory, tiny_shards: Path) -> Callable[[str], Path]:
    """The folder of the run "whole", "chain" (see CHAIN) or "stopped" (once, and gone on with), or one with dropout."""
    folder = tmp_path_factory.mktemp("elastic")
    config = write_config(folder, tiny_shards)
    config.write_text(config.read_text().replace("dropout: 0.1", "dropout: 0.0"))

    @functools.cache
    def of(name: str) -> Path:
        course, _, dropout = name.partition("-")
        links = DROPOUT_CHAIN if dropout else CHAIN
        steps = LENGTH * len(links)
        alone = ("zero2", 2) if dropout else ("single", 1)
        stops = {
            "whole": [(alone, steps)],
            "stopped": [(alone, 10), (alone, steps)],
            "chain": [(link, LENGTH * (number + 1)) for number, link in enumerate(links)],
        }
        reached = 0
        for (kind, size), stop in stops[course]:
            more = ["model.dropout=0.1"] if dropout else []
            said = train(folder, config, name, kind, size, steps, stop, *more)
            assert not reached or f"going on at step {reached} from" in said, said
            reached = stop
        return folder / "runs" / name

    return of


def last_state(run: Path) -> dict[str, Tensor]:
    return toy.read(max((run / "checkpoints").glob("step-????????")))


@pytest.mark.parametrize("kind", ["", pytest.param("-dropout", marks=pytest.mark.exhaustive)])
def test_the_course_is_that_of_a_run_which_was_not_stopped(kind: str, run_of: Callable[[str], Path]) -> None:
    whole, chained = losses(run_of(f"whole{kind}")), losses(run_of(f"chain{kind}"))
    assert len(whole) == LENGTH * len(DROPOUT_CHAIN if kind else CHAIN) >= 20
    for one, other in zip(whole, chained, strict=True):
        assert other == pytest.approx(one, rel=1e-4), one["step"]
        assert (one["lr"], one["expressions_seen"]) == (other["lr"], other["expressions_seen"])
    batches = [lines(run_of(f"{name}{kind}") / "batches.jsonl") for name in ("whole", "chain")]
    assert batches[0] == batches[1]


@pytest.mark.parametrize("kind", ["", pytest.param("-dropout", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("what", ["model", "ema"])
def test_weights_and_their_average_end_where_they_would_have(
    what: str, kind: str, run_of: Callable[[str], Path]
) -> None:
    whole, chained = last_state(run_of(f"whole{kind}")), last_state(run_of(f"chain{kind}"))
    assert whole.keys() == chained.keys()
    moments = [{n: t for n, t in state.items() if n.startswith("optim.")} for state in (whole, chained)]
    tensors = [
        {n.replace(what, "model", 1): t for n, t in state.items() if n.startswith(what)} for state in (whole, chained)
    ]
    assert toy.farthest_weights(tensors[0] | moments[0], tensors[1] | moments[1]) < 1e-3


def test_the_same_strategy_on_as_many_ranks_goes_on_bit_for_bit(run_of: Callable[[str], Path]) -> None:
    assert losses(run_of("stopped-dropout")) == losses(run_of("whole-dropout"))
    toy.assert_same(last_state(run_of("stopped-dropout")), last_state(run_of("whole-dropout")))


def test_dropout_was_on(run_of: Callable[[str], Path]) -> None:
    dropped, plain = losses(run_of("whole-dropout"))[0], losses(run_of("whole"))[0]
    assert abs(dropped["loss"] - plain["loss"]) > 1e-3 * plain["loss"]
