"""What a model brings that UniRES does not have: buffers, BatchNorm, tied weights, ways of its own to start.

All kinds of a world size run one after another in processes that are started once; the tests look at what came out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import strange_toy as strange
import torch
import toy_training as toy
from torch import Tensor

from mres.model.buffers import persistent_buffers
from mres.testing import run_distributed

KINDS = {
    1: ("single", "single-bf16", "fsdp", "zero3"),
    2: ("ddp", "fsdp", "zero1", "zero2", "zero3", "fsdp-block", "ddp-selective", "zero3-bf16"),
    3: ("ddp", "fsdp", "zero3"),
}
ALL = [(size, kind) for size, kinds in KINDS.items() for kind in kinds]
EXACT = [(size, kind) for size, kind in ALL if not kind.endswith("bf16")]
SAVED, STEPS = 2, 4
# By world size, whose checkpoint each of its kinds reads.
SOURCES = {1: "3/zero3", 2: "1/single", 3: "2/zero3"}
FROZEN = ("blocks.0", "attention.out_proj")
pytestmark = pytest.mark.slow


@dataclass
class Report:
    """What a rank saw of one kind."""

    losses: list[float]
    resumed: list[float]
    plain: float
    averaged: float
    diverged: list[str]


def _train_all(folder: Path, kinds: tuple[str, ...]) -> dict[str, Report]:
    from mres.supervise.world import join_world, leave_world

    world = join_world(60)
    reports = {}
    for kind in kinds:
        strategy = strange.build(kind, world)
        losses = strange.train(strategy, range(SAVED))
        strategy.save_state(folder / kind)
        losses += strange.train(strategy, range(SAVED, STEPS))
        strategy.save_state(folder / f"{kind}-end")
        plain = _evaluate(strategy)
        with strategy.averaged():
            averaged = _evaluate(strategy)
        assert plain == _evaluate(strategy)
        other = strange.build(kind, world, seed=1)
        other.load_state(folder / kind, optimizer=True)
        resumed = strange.train(other, range(SAVED, STEPS))
        other.save_state(folder / f"{kind}-resumed")
        reports[kind] = Report(losses, resumed, plain, averaged, strategy.diverged_buffers())
    leave_world()
    return reports


def _evaluate(strategy: strange.Strategy) -> float:
    strategy.module.eval()
    image, text = strange.batch(99)
    with torch.no_grad():
        logits = strategy.module(image, text)
    strategy.module.train()
    return float(logits.float().square().mean())


def _pass_on(folder: Path, kinds: tuple[str, ...], source: str) -> None:
    from mres.supervise.world import join_world, leave_world

    world = join_world(60)
    for kind in kinds:
        strategy = strange.build(kind, world, seed=1)
        strategy.load_state(folder / source, optimizer=True)
        strategy.write_staged(strategy.stage(), folder / str(world.size) / f"{kind}-passed")
    leave_world()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("strange")


@pytest.fixture(scope="module")
def reports(root: Path) -> dict[tuple[int, str], Report]:
    found = {}
    for size, kinds in KINDS.items():
        by_kind = run_distributed(_train_all, size, root / str(size), kinds)[0]
        found |= {(size, kind): report for kind, report in by_kind.items()}
    for size, kinds in KINDS.items():
        run_distributed(_pass_on, size, root, kinds, SOURCES[size])
    return found


def saved(root: Path, size: int, name: str) -> dict[str, Tensor]:
    return toy.read(root / str(size) / name)


@pytest.mark.parametrize(("size", "kind"), ALL)
def test_losses_are_those_of_one_process(size: int, kind: str, reports: dict[tuple[int, str], Report]) -> None:
    """So BatchNorm sees all ranks' images, and tied weights get both places' gradients."""
    half = kind.endswith("bf16")
    assert reports[size, kind].losses == pytest.approx(reports[1, "single"].losses, rel=3e-2 if half else 2e-6)
    for figure in ("plain", "averaged"):
        expected = getattr(reports[1, "single"], figure)
        assert getattr(reports[size, kind], figure) == pytest.approx(expected, rel=0.2 if half else 1e-4)


@pytest.mark.parametrize(("size", "kind"), ALL)
def test_a_checkpoint_has_all_that_state_dict_has_once(
    size: int, kind: str, reports: dict[tuple[int, str], Report], root: Path
) -> None:
    model, found = strange.Strange(), saved(root, size, kind)
    expected = {name: tensor for name, tensor in model.state_dict().items() if name != "out.weight"}
    weights = {name.removeprefix("model."): tensor for name, tensor in found.items() if name.startswith("model.")}
    assert {n: (t.shape, t.dtype) for n, t in weights.items()} == {n: (t.shape, t.dtype) for n, t in expected.items()}
    assert set(expected) - {name for name, _ in model.named_parameters()} == strange.BUFFERS
    averages = {name.removeprefix("ema.") for name in found if name.startswith("ema.")}
    assert averages == {name for name, _ in model.named_parameters()}, "buffers have none"
    assert reports[size, kind].diverged == []


@pytest.mark.parametrize(("size", "kind"), EXACT)
def test_buffers_are_those_of_one_process(
    size: int, kind: str, reports: dict[tuple[int, str], Report], root: Path
) -> None:
    one, other = saved(root, 1, "single-end"), saved(root, size, f"{kind}-end")
    assert one["model.steps"].tolist() == [7 + STEPS, 2**40 + STEPS]
    assert int(one["model.blocks.1.calls"]) == int(one["model.norm.num_batches_tracked"]) == STEPS
    for name in (f"model.{name}" for name in strange.BUFFERS):
        if name.endswith(("running_mean", "running_var")):
            assert torch.allclose(one[name], other[name], rtol=1e-4, atol=1e-5), name
        else:
            assert torch.equal(one[name], other[name]), name


# Of three ranks DDP adds up in another order once it has rebuilt its buckets.
@pytest.mark.parametrize(("size", "kind"), [(size, kind) for size, kind in ALL if size < 3])
def test_resumes_bit_for_bit(size: int, kind: str, reports: dict[tuple[int, str], Report], root: Path) -> None:
    assert reports[size, kind].resumed == reports[size, kind].losses[SAVED:]
    toy.assert_same(saved(root, size, f"{kind}-end"), saved(root, size, f"{kind}-resumed"))


@pytest.mark.parametrize(("size", "kind"), ALL)
def test_every_bit_arrives_from_another_strategy_and_world_size(
    size: int, kind: str, reports: dict[tuple[int, str], Report], root: Path
) -> None:
    toy.assert_same(toy.read(root / SOURCES[size]), saved(root, size, f"{kind}-passed"))


def _freeze_and_diverge(folder: Path) -> tuple[dict[str, list[str]], list[str]]:
    from mres.supervise.world import join_world, leave_world

    world, kept = join_world(60), {}
    for kind in ("fsdp", "zero3"):
        strategy = strange.build(kind, world, frozen=FROZEN)
        strategy.save_state(folder / f"{kind}-before")
        strange.train(strategy, range(1))
        strategy.save_state(folder / kind)
        before, after = toy.read(folder / f"{kind}-before"), toy.read(folder / kind)
        kept[kind] = [name for name in before if torch.equal(before[name], after[name])]
    persistent_buffers(strategy.model)["steps"].add_(world.rank)
    diverged = strategy.diverged_buffers()
    leave_world()
    return kept, diverged


def test_frozen_parts_keep_their_weights_and_a_rank_with_other_buffers_is_seen(tmp_path: Path) -> None:
    for kept, diverged in run_distributed(_freeze_and_diverge, 2, tmp_path):
        assert diverged == ["steps"]
        names = [name for name, _ in strange.Strange().named_parameters()]
        frozen = {f"model.{name}" for name in names if name.startswith(FROZEN)}
        for found in kept.values():
            assert {name for name in found if name.startswith("model.")} - {
                f"model.{name}" for name in ("codes", "kinds", "small", "mask")
            } == frozen
            assert not any(name.startswith("ema.blocks.0.") for name in found)
