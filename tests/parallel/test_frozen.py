"""Frozen weights of a model that begins without memory: under every strategy, precision and recomputing, they stay what
they were to the bit and the rest is trained as in one process; also after a resume, on other ranks too.

All kinds run one after another in processes that are started once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import toy_training as toy
from tiny_model import outline

from mres.model.initial import initial_weights
from mres.parallel.factory import build_strategy
from mres.parallel.strategy import Strategy
from mres.supervise.world import World, join_world, leave_world
from mres.testing import run_distributed
from mres.train.optim import freeze, parameter_groups

FROZEN = {
    "text": ("text",),
    "image": ("vision",),
    "all but decoder": (
        "vision", "text", "patch_project", "low_project", "high_project", "word_project", "low_filter", "entry_gate",
        "exit_gate",
    ),
}  # fmt: skip
STRATEGIES = ("single", "ddp", "fsdp", "zero1", "zero2", "zero3")
# All four together take twice the time of CI, and were trained once (2026-11-30).
WAYS = ("", "-bf16-block")
MATRIX = [(frozen, strategy + way) for way in WAYS for frozen in FROZEN for strategy in STRATEGIES]
# What is trained where somebody waits for it: every strategy and every part, both precisions, with and without recomputing.
ONCE = {
    ("text", "zero1"), ("image", "zero2-block"), ("all but decoder", "zero3"), ("text", "zero3-bf16"),
    ("image", "fsdp-bf16-block"), ("all but decoder", "ddp"), ("all but decoder", "zero2-bf16"),
    ("text", "single-bf16"), ("image", "single"),
}  # fmt: skip
STEPS, MORE = range(2), range(2, 4)
pytestmark = pytest.mark.slow


@dataclass
class Report:
    """What one rank saw: the course, its end again after a resume, what was not finite before there were values, and after
    forward had lost some."""

    course: toy.Course
    resumed: toy.Course
    blank: list[str]
    spoiled: list[str]
    steps_made: int


def build(frozen: str, kind: str, world: World, *, seed: int = 0) -> Strategy:
    """A strategy whose model had no memory until it was wrapped; the weights are `seed`'s."""
    model = outline(toy.model_config())
    freeze(model, FROZEN[frozen])
    strategy = build_strategy(toy.config_of(kind), world)
    type(strategy).own_unit_from = type(strategy).persist_below = 1000  # type: ignore[attr-defined]
    weights = initial_weights(model, seed)
    strategy.wrap(model, model.blocks(), parameter_groups(model, 0.05), toy.ADAMW)
    blank = strategy.not_finite()
    strategy.load_weights(weights)
    strategy.blank = blank  # type: ignore[attr-defined]
    return strategy


def _train_all(folder: Path, chosen: list[tuple[str, str]]) -> dict[tuple[str, str], Report]:
    world = join_world(toy.config_of("ddp").timeout_s)
    reports = {one: _train(*one, world, folder / _name(*one)) for one in chosen}
    leave_world()
    return reports


def _train(frozen: str, kind: str, world: World, folder: Path) -> Report:
    strategy = build(frozen, kind, world)
    course = toy.train(strategy, STEPS)
    strategy.save_state(folder)
    blank, made = strategy.blank, strategy.steps_made()  # type: ignore[attr-defined]
    rest = toy.train(strategy, MORE)
    course.losses += rest.losses
    course.norms += rest.norms
    resumed = build(frozen, kind, world, seed=1)
    resumed.load_state(folder, optimizer=True)
    again = toy.train(resumed, MORE)
    resumed.save_state(folder / "end")
    return Report(course, again, blank, _spoiled(resumed, FROZEN[frozen][0]), made)


def _spoiled(strategy: Strategy, prefix: str) -> list[str]:
    """What is found not to be finite after forward's own copies of what is frozen were lost, where it has any."""
    for name, share in strategy.forward_shares():
        if name.startswith(f"{prefix}."):
            share.fill_(torch.nan)
    return strategy.not_finite()


def _alone(folder: Path, chosen: list[tuple[str, str]]) -> tuple[dict, dict[tuple[str, str], toy.Course]]:
    """On one rank: what is trained there from the beginning, and what goes on from where two ranks came."""
    world = join_world(toy.config_of("ddp").timeout_s)
    reports = {one: _train(*one, world, folder / _name(*one)) for one in chosen if one[1].startswith("single")}
    courses = {}
    for frozen, kind in chosen:
        strategy = build(frozen, kind, world, seed=1)
        strategy.load_state(folder / _name(frozen, kind), optimizer=True)
        courses[frozen, kind] = toy.train(strategy, MORE)
    leave_world()
    return reports, courses


def _name(frozen: str, kind: str) -> str:
    return f"{frozen}-{kind}".replace(" ", "-")


class Trained:
    """What a choice of the matrix came to."""

    def __init__(self, folder: Path, chosen: list[tuple[str, str]]) -> None:
        self.folder, self.chosen = folder, chosen
        spread = [one for one in chosen if not one[1].startswith("single")]
        first, second = run_distributed(_train_all, 2, folder, spread, timeout_s=1800)
        assert [repr(report.course) for report in first.values()] == [repr(r.course) for r in second.values()]
        alone, self.elsewhere = run_distributed(_alone, 1, folder, chosen, timeout_s=1800)[0]
        self.reports = first | alone


def _chosen(exhaustive: bool) -> list[tuple[str, str]]:
    kept = sorted({*MATRIX, *ONCE} if exhaustive else ONCE)
    alone = {(frozen, "single" + ("-bf16" if "bf16" in kind else "")) for frozen, kind in kept}
    return [*kept, *sorted(alone - set(kept))]


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=pytest.mark.exhaustive)], ids=["cut", "whole"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("frozen"), _chosen(request.param))


def test_it_trains_as_one_process_does_and_goes_on_after_a_resume(trained: Trained) -> None:
    for (frozen, kind), report in trained.reports.items():
        half = "bf16" in kind
        single = trained.reports[frozen, "single" + ("-bf16" if half else "")].course
        named = f"{frozen}, {kind}"
        assert report.steps_made == len(STEPS), named
        assert report.course.losses == pytest.approx(single.losses, rel=5e-3 if half else 1e-5), named
        assert report.course.norms == pytest.approx(single.norms, rel=5e-2 if half else 1e-4), named
        assert len(set(report.course.losses)) == len(STEPS) + len(MORE), named
        assert report.resumed.losses == report.course.losses[len(STEPS) :], named
        assert report.resumed.norms == report.course.norms[len(STEPS) :], named
        elsewhere = trained.elsewhere[frozen, kind]
        assert elsewhere.losses == pytest.approx(report.resumed.losses, rel=5e-3 if half else 1e-5), named


def test_what_is_frozen_stays_to_the_bit_and_the_rest_moves(trained: Trained) -> None:
    start = dict(initial_weights(outline(toy.model_config()), 0))
    for (frozen, kind), report in trained.reports.items():
        named = f"{frozen}, {kind}"
        assert report.blank == sorted(start), f"{named}: what forward reads was never filled, and nobody saw"
        lost = [name for name in start if name.startswith(f"{FROZEN[frozen][0]}.")] if "zero" in kind else []
        assert report.spoiled == sorted(lost), named
        saved = toy.read(trained.folder / _name(frozen, kind) / "end")
        kept = {name for name in start if name.split(".")[0] in FROZEN[frozen]}
        assert [n for n in kept if not torch.equal(saved[f"model.{n}"], start[n])] == [], named
        assert not [n for n in kept if f"optim.{n}.step" in saved], named
        moved = [n for n in start.keys() - kept if not torch.equal(saved[f"model.{n}"], start[n])]
        assert len(moved) > 0.9 * len(start.keys() - kept), named
