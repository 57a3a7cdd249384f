"""The same numbers everywhere: every strategy, 1 to 4 ranks, with and without accumulation, float32 and float64, and
whatever is recomputed or compiled.

All kinds of a world size run one after another in processes that are started once. A strategy that spreads takes its
share whole at even steps and in two micro-batches at odd ones (of four ranks: two images and one); `single` always takes
the whole batch at once. So one course shows that neither ranks nor accumulation change what is trained.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import toy_training as toy
from _pytest.mark import ParameterSet

from mres.parallel.strategy import Strategy
from mres.testing import run_distributed

IMAGES, STEPS = 12, 12
EVERYWHERE = ("ddp", "fsdp", "zero1", "zero2", "zero3", "ddp-f64", "fsdp-f64")
BESIDE = {
    1: ("single", "single-f64"),
    2: ("fsdp-gathered", "fsdp-offload", "fsdp-offload-f64", "zero2-offload", "zero3-offload"),
    4: ("hsdp2", "hsdp2-f64", "hsdp1-f64"),
}
RECOMPUTING = {
    1: ("single-block", "single-selective", "zero2-selective", "zero3-block"),
    2: (
        "ddp-block", "ddp-selective", "fsdp-block", "fsdp-selective", "fsdp-gathered-block", "fsdp-gathered-selective",
        "zero1-block", "zero1-selective", "zero2-block", "zero2-selective", "zero3-block",
    ),
    3: ("ddp-block", "fsdp-selective", "zero3-block"),
    4: ("hsdp2-block", "hsdp2-selective", "zero2-block"),
}  # fmt: skip
COMPILED = {
    1: ("single-compiled",),
    2: ("ddp-compiled", "fsdp-compiled", "fsdp-block-compiled", "zero1-compiled", "zero2-compiled"),
}
KINDS = {n: (*EVERYWHERE, *BESIDE.get(n, ()), *RECOMPUTING[n], *COMPILED.get(n, ())) for n in (1, 2, 3, 4)}
# What is trained where somebody waits for it: what test_strategies.py (every strategy on two ranks, in float32) and
# test_blocks.py (what is compiled) do not.
ONCE = {
    1: ("single", "single-f64", "single-block"),
    2: ("fsdp", "fsdp-f64", "zero3-offload", "fsdp-selective"),
    3: (),
    4: ("hsdp2",),
}
pytestmark = pytest.mark.slow


def tiered(kinds: dict[int, tuple[str, ...]], kept: Callable[[str], bool] = bool) -> list[ParameterSet]:
    """World sizes and kinds to test."""
    pairs = [(world_size, kind) for world_size, of in kinds.items() for kind in of if kept(kind)]
    return [pytest.param(n, k, marks=() if k in ONCE[n] else pytest.mark.exhaustive) for n, k in pairs]


@dataclass
class Report:
    course: toy.Course
    described: str


def _train_all(folder: Path, kinds: tuple[str, ...]) -> dict[str, Report]:
    from mres.supervise.world import join_world, leave_world

    world = join_world(toy.config_of("ddp").timeout_s)
    reports = {kind: _train(toy.build(kind, world), folder / kind) for kind in kinds}
    leave_world()
    return reports


def _train(strategy: Strategy, folder: Path) -> Report:
    course = toy.Course()
    for step in range(STEPS):
        accumulate = 1 if strategy.config.strategy == "single" else 1 + step % 2
        one = toy.train(strategy, range(step, step + 1), accumulate=accumulate, num_images=IMAGES)
        course.losses += one.losses
        course.norms += one.norms
    strategy.save_state(folder)
    return Report(course, strategy.describe())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parity")


@pytest.fixture(scope="module")
def trained(root: Path):
    """What a kind came to on that many ranks."""

    @functools.cache
    def all_of(world_size: int, once: bool) -> dict[str, Report]:
        kinds = tuple(kind for kind in KINDS[world_size] if (kind in ONCE[world_size]) == once)
        reports = run_distributed(_train_all, world_size, root / str(world_size), kinds, timeout_s=1800)
        for kind in kinds:  # losses are sums over ranks, and norms are global
            assert len({repr(report[kind]) for report in reports}) == 1, kind
        return reports[0]

    return lambda world_size, kind: all_of(world_size, kind in ONCE[world_size])[kind]


def weights(folder: Path) -> dict:
    return {name: value for name, value in toy.read(folder).items() if not name.endswith(".step")}


@pytest.mark.parametrize(("world_size", "kind"), tiered(KINDS, lambda kind: "f64" not in kind))
def test_float32_is_that_of_one_process(world_size: int, kind: str, trained, root: Path) -> None:
    course, single = trained(world_size, kind).course, trained(1, "single").course
    compiled = "compiled" in kind  # it fuses, and so rounds in other places
    assert course.losses == pytest.approx(single.losses, rel=1e-4 if compiled else 1e-5)
    assert course.norms == pytest.approx(single.norms, rel=1e-3 if compiled else 1e-4)
    one, other = weights(root / "1" / "single"), weights(root / str(world_size) / kind)
    assert toy.farthest_weights(one, other) < 1e-4


@pytest.mark.parametrize(("world_size", "kind"), tiered(RECOMPUTING))
def test_recomputing_changes_nothing(world_size: int, kind: str, trained) -> None:
    """Not even the order of sums."""
    plain = kind.removesuffix("-block").removesuffix("-selective")
    found, expected = (trained(world_size, k).course for k in (kind, plain))
    assert found.losses == expected.losses
    assert found.norms == expected.norms


@pytest.mark.parametrize(("world_size", "kind"), tiered(KINDS, lambda kind: "f64" in kind))
def test_float64_is_that_of_one_process(world_size: int, kind: str, trained, root: Path) -> None:
    """To the order of sums: whatever is left out, divided wrongly or rounded on the way would show here."""
    course, single = trained(world_size, kind).course, trained(1, "single-f64").course
    assert course.losses == pytest.approx(single.losses, rel=1e-9)
    assert course.norms == pytest.approx(single.norms, rel=1e-9)
    one, other = weights(root / "1" / "single-f64"), weights(root / str(world_size) / kind)
    assert {str(value.dtype) for value in other.values()} == {"torch.float64"}
    assert toy.farthest_weights(one, other) < 1e-9


def test_the_courses_say_something(trained) -> None:
    """They learn, are clipped, and float32 is not float64."""
    single, exact = trained(1, "single").course, trained(1, "single-f64").course
    assert min(single.losses[-3:]) < 0.9 * single.losses[0]
    assert max(single.norms) > toy.ADAMW.max_grad_norm
    assert single.losses == pytest.approx(exact.losses, rel=1e-4)
    assert single.losses != pytest.approx(exact.losses, rel=1e-9)


def test_what_a_run_says_of_itself(trained) -> None:
    assert trained(4, "hsdp2").described == "fsdp on 4 rank(s), cpu: float32 over float32 masters, 2 copies of 2 ranks"
    assert trained(2, "fsdp-f64").described == "fsdp on 2 rank(s), cpu: float64 over float64 masters"
    assert trained(2, "zero3-offload").described.endswith("masters and moments in host memory, stage 3")
