"""Frozen parameters, learning rates by group, refused steps and the moving average: the same under every strategy.

All kinds run one after another in two processes, started once; the tests look at what came out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import toy_training as toy
from torch import Tensor

from mres.model.unires.spec import SPEC
from mres.parallel.factory import build_strategy
from mres.parallel.strategy import Strategy
from mres.supervise.world import World
from mres.testing import run_distributed
from mres.train.config import OptimConfig
from mres.train.optim import freeze, lr_scales, parameter_groups

EXACT = ("single", "ddp", "fsdp", "fsdp-gathered", "zero1", "zero2", "zero2-offload", "zero3")
HALF = ("zero1-bf16", "zero3-bf16")
ALL = [*EXACT, *HALF]
# Who reads whose checkpoint.
READS = {"single": "zero3", "ddp": "zero1", "fsdp": "zero2", "zero2": "fsdp", "zero3": "ddp", "zero3-bf16": "single"}
WEIGHTS = (0.5, 0.25, 0.125)
pytestmark = pytest.mark.slow


@dataclass
class Report:
    """What one rank saw of one kind."""

    course: toy.Course
    refused_moved: bool
    asked: list[float]
    plain: tuple[float, float]
    averaged: float
    after: toy.Course
    restarted: bool = False


def build(kind: str, world: World, *, seed: int = 0) -> Strategy:
    """A toy model whose text encoder is frozen and whose image encoder learns at a tenth of the rate."""
    model = toy.model_of(seed)
    world = World(0, 1, 0, 1, world.device) if kind == "single" else world
    strategy = build_strategy(toy.config_of(kind), world)
    for name, value in (("persist_below", 1000), ("own_unit_from", 1000)):
        if hasattr(strategy, name):
            setattr(type(strategy), name, value)
    freeze(model, ["text", "vision.vit.blocks.0.mlp"])
    groups = parameter_groups(model, 0.05, lr_scales(model, OptimConfig(image_lr_scale=0.1), SPEC))
    strategy.wrap(model, model.blocks(), groups, toy.ADAMW)
    strategy.track_average()
    return strategy


def _run_all(folder: Path) -> dict[str, Report]:
    from mres.supervise.world import join_world, leave_world

    world = join_world(toy.config_of("ddp").timeout_s)
    reports = {kind: _run(build(kind, world), folder / kind) for kind in ALL}
    for kind, source in READS.items():
        other = build(kind, world, seed=1)
        other.load_state(folder / source / "saved", optimizer=True)
        other.save_state(folder / kind / "read")
        other.load_state(folder / source / "saved", optimizer=False)
        assert other.average is not None
        reports[kind].restarted = all(torch.equal(*map(_local, pair)) for pair in other.average.of.items())
    leave_world()
    return reports


def _run(strategy: Strategy, folder: Path) -> Report:
    assert strategy.average is not None
    course = toy.Course()
    alone = strategy.world.size == 1
    for step, weight in enumerate(WEIGHTS):
        if alone:
            strategy.save_state(folder / f"before-{step}")
        one = toy.train(strategy, range(step, step + 1))
        course.losses += one.losses
        course.norms += one.norms
        strategy.average.update(weight)
    if alone:
        strategy.save_state(folder / f"before-{len(WEIGHTS)}")
    moved, asked = _refuse(strategy)
    strategy.save_state(folder / "saved")
    first = toy.evaluate(strategy)
    with strategy.averaged():
        averaged = toy.evaluate(strategy)
    plain = first, toy.evaluate(strategy)
    after = toy.train(strategy, range(5, 7))
    return Report(course, moved, asked, plain, averaged, after)


def _average_by_hand(folder: Path) -> dict[str, Tensor]:
    states = [toy.read(folder / f"before-{step}") for step in range(len(WEIGHTS) + 1)]
    names = [name for name in states[0] if name.startswith("ema.")]
    weights = [{n: s[n.replace("ema.", "model.")].double() for n in names} for s in states]
    average = weights[0]
    for weight, now in zip(WEIGHTS, weights[1:], strict=True):
        average = {n: average[n] + weight * (now[n] - average[n]) for n in names}
    return average


def _refuse(strategy: Strategy) -> tuple[bool, list[float]]:
    """A step that is refused; returns whether a master moved, and the norms that were asked about."""
    before = [_local(master).clone() for master in strategy.masters()]
    asked: list[Tensor] = []

    def refuse(norm: Tensor) -> Tensor:
        asked.append(norm)
        return norm < 0

    step = strategy.step
    strategy.step = lambda lr: step(lr, refuse)  # type: ignore[method-assign,assignment]
    toy.train(strategy, range(4, 5))
    toy.train(strategy, range(4, 5), poisoned=True)  # not finite: asked as well
    strategy.step = step  # type: ignore[method-assign]
    moved = any(not torch.equal(old, _local(new)) for old, new in zip(before, strategy.masters(), strict=True))
    return moved, [float(norm) for norm in asked]


def _local(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("averages")


@pytest.fixture(scope="module")
def reports(folder: Path) -> dict[str, Report]:
    first, second = run_distributed(_run_all, 2, folder, timeout_s=900)
    for kind in ALL:
        assert repr(first[kind].course) == repr(second[kind].course), kind
        assert not second[kind].refused_moved, kind
    return first


def is_frozen(name: str) -> bool:
    return name.startswith(("text.", "vision.vit.blocks.0.mlp."))


@pytest.mark.parametrize("kind", EXACT[1:])
def test_the_same_course(kind: str, reports: dict[str, Report]) -> None:
    one, single = reports[kind], reports["single"]
    assert one.course.losses == pytest.approx(single.course.losses, rel=1e-6)
    assert one.course.norms == pytest.approx(single.course.norms, rel=3e-6)
    assert one.after.losses == pytest.approx(single.after.losses, rel=1e-5)
    assert one.averaged == pytest.approx(single.averaged, rel=1e-4)


@pytest.mark.parametrize("kind", ALL)
def test_what_is_frozen_is_in_checkpoints_as_weights_alone_to_the_bit(
    kind: str, reports: dict[str, Report], folder: Path
) -> None:
    start, saved = toy.weights(seed=0), toy.read(folder / kind / "saved")
    assert {name for name in saved if name.startswith("model.")} == set(start)
    for name, weight in start.items():
        plain = name.removeprefix("model.")
        others = {f"ema.{plain}", f"optim.{plain}.exp_avg", f"optim.{plain}.exp_avg_sq", f"optim.{plain}.step"}
        if is_frozen(plain):
            assert torch.equal(saved[name], weight), name
            assert not others & set(saved)
        else:
            assert others <= set(saved)
    moved = [n for n, w in start.items() if not is_frozen(n.removeprefix("model.")) and not torch.equal(saved[n], w)]
    assert len(moved) > 0.9 * sum(not is_frozen(n.removeprefix("model.")) for n in start)


@pytest.mark.parametrize("kind", ALL)
def test_a_refused_step_moves_nothing_and_is_asked_about_once(kind: str, reports: dict[str, Report]) -> None:
    report = reports[kind]
    assert not report.refused_moved
    finite, other = report.asked
    assert finite > 0
    assert other - other != 0
    assert finite == pytest.approx(reports["single"].asked[0], rel=1e-5 if kind in EXACT else 5e-2)


def test_the_average_is_what_is_computed_by_hand(reports: dict[str, Report], folder: Path) -> None:
    expected, saved = _average_by_hand(folder / "single"), toy.read(folder / "single" / "saved")
    assert len(expected) > 50
    for name, average in expected.items():
        assert torch.allclose(saved[name].double(), average, rtol=0, atol=3e-7), name
    apart = max(float((saved[n] - saved[n.replace("ema.", "model.")]).abs().max()) for n in expected)
    assert apart > 1e-5, "the average must lag behind the weights"


@pytest.mark.parametrize("kind", EXACT[1:])
def test_the_average_is_that_of_one_process(kind: str, reports: dict[str, Report], folder: Path) -> None:
    one, other = (toy.read(folder / k / "saved") for k in ("single", kind))
    assert one.keys() == other.keys()
    for name in (n for n in one if n.startswith("ema.")):
        has_gradient = one[name.replace("ema.", "optim.") + ".exp_avg_sq"].sqrt() > 1e-6
        assert float(((one[name] - other[name]).abs() * has_gradient).max()) < 1e-5, name


@pytest.mark.parametrize("kind", ALL)
def test_evaluating_the_average_leaves_the_weights_as_they_were(kind: str, reports: dict[str, Report]) -> None:
    report = reports[kind]
    assert report.plain[0] == report.plain[1]
    assert report.averaged != report.plain[0]


def test_averaged_weights_are_what_forward_computes_with(reports: dict[str, Report], folder: Path) -> None:
    saved = toy.read(folder / "single" / "saved")
    model = toy.model_of(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(saved.get(f"ema.{name}", saved[f"model.{name}"]))
        logits = model.eval()(*toy.batch(99)[:2])
    assert reports["single"].averaged == pytest.approx(float(logits.mean()), rel=1e-6)


@pytest.mark.parametrize(("kind", "source"), READS.items())
def test_all_of_it_is_read_by_another_strategy(
    kind: str, source: str, reports: dict[str, Report], folder: Path
) -> None:
    toy.assert_same(toy.read(folder / source / "saved"), toy.read(folder / kind / "read"))
    assert reports[kind].restarted, "weights alone: the average begins anew from them"


def test_one_rank_goes_on_from_two(reports: dict[str, Report], folder: Path) -> None:
    run_distributed(_read_alone, 1, folder)
    toy.assert_same(toy.read(folder / "zero3" / "saved"), toy.read(folder / "alone"))


def _read_alone(folder: Path) -> None:
    from mres.supervise.world import join_world, leave_world

    strategy = build("fsdp", join_world(toy.config_of("fsdp").timeout_s), seed=1)
    strategy.load_state(folder / "zero3" / "saved", optimizer=True)
    strategy.save_state(folder / "alone")
    leave_world()


def test_a_group_learns_at_its_own_rate(reports: dict[str, Report], folder: Path) -> None:
    """AdamW's first step is of about the rate's size wherever there is a gradient."""
    before, after = (toy.read(folder / "single" / f"before-{step}") for step in (0, 1))
    sizes: dict[bool, list[float]] = {True: [], False: []}
    for name in (n for n in before if n.startswith("ema.")):
        plain = name.removeprefix("ema.")
        first = after[f"optim.{plain}.exp_avg"].abs() > 1e-5
        moved = (after[f"model.{plain}"] - before[f"model.{plain}"]).abs()
        if first.any() and before[f"model.{plain}"].ndim == 1:  # without weight decay
            sizes[plain.startswith("vision.")].append(float(moved[first].median()))
    lr = toy.learning_rate(0)
    assert all(size == pytest.approx(0.1 * lr, rel=0.05) for size in sizes[True])
    assert all(size == pytest.approx(lr, rel=0.05) for size in sizes[False])
    assert all(map(len, sizes.values()))
