"""One contract for all strategies: the same training, the same state, on real processes over gloo.

The kinds of a tier run one after another in two processes, started once; the tests look at what came out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import toy_training as toy
from _pytest.mark import ParameterSet

from mres.errors import UserError
from mres.parallel.strategy import Strategy
from mres.testing import run_distributed

KINDS = ("single", "ddp", "fsdp", "zero1", "zero2", "zero3")
BRIEF = ("fsdp-gathered", "hsdp1", "fsdp-offload", "zero1-offload", "zero2-offload", "zero3-offload", "zero3-tuned")
HALF = ("fsdp-bf16", "single-bf16", "ddp-bf16", "zero1-bf16", "zero2-bf16", "zero3-bf16", "zero3-offload-bf16")
# What is trained where somebody waits for it.
ONCE = (*KINDS, "fsdp-bf16", "single-bf16", "zero3-bf16")
STEPS, SAVED = 20, 15
BRIEF_STEPS, BRIEF_SAVED = 4, 2  # of BRIEF and HALF
# What a kind is compared with: one that trained for as long, in the same precision.
REFERENCE = {**dict.fromkeys(KINDS, "single"), **dict.fromkeys(BRIEF, BRIEF[0]), **dict.fromkeys(HALF, HALF[0])}
# Who reads whose checkpoint; every kind is read by another one, in other processes by one rank too.
READS = {"single": "fsdp", "ddp": "zero3", "fsdp": "zero2", "zero1": "single", "zero2": "ddp", "zero3": "zero1"}
pytestmark = pytest.mark.slow


def tiered(kinds: Iterable[str]) -> list[ParameterSet]:
    return [pytest.param(kind, marks=() if kind in ONCE else pytest.mark.exhaustive) for kind in kinds]


ALL = tiered((*KINDS, *BRIEF, *HALF))


@dataclass
class Report:
    """What one rank saw of one kind."""

    course: toy.Course
    evaluated: tuple[float, ...] = ()
    bad: toy.Course = field(default_factory=toy.Course)
    after: toy.Course = field(default_factory=toy.Course)
    resumed: toy.Course = field(default_factory=toy.Course)
    accumulated: toy.Course = field(default_factory=toy.Course)
    read: toy.Course = field(default_factory=toy.Course)
    refusal: str = ""


class Reports(dict[str, Report]):
    """By kind; those of a tier are trained when the first of them is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __missing__(self, kind: str) -> Report:
        kinds = [other for other in (*KINDS, *BRIEF, *HALF) if (other in ONCE) == (kind in ONCE)]
        first, second = run_distributed(_train_all, 2, self.folder, kinds, timeout_s=900)
        for other in kinds:  # norms are global and losses are summed over ranks, so ranks see the same
            assert repr(first[other].course) == repr(second[other].course), other
        self.update(first)
        return self[kind]


def _train_all(folder: Path, kinds: list[str]) -> dict[str, Report]:
    """Two ranks: every kind trains, meets a bad step, and saves on the way; then new ones resume from those."""
    from mres.supervise.world import join_world, leave_world

    _write_output_to(folder / f"output-{len(kinds)}-{os.environ['RANK']}")
    world = join_world(toy.config_of("ddp").timeout_s)
    reports = {}
    for kind in kinds:
        steps, saved = (STEPS, SAVED) if kind in KINDS else (BRIEF_STEPS, BRIEF_SAVED)
        reports[kind] = _train(toy.build(kind, world), folder / kind, steps, saved)
    for kind, report in reports.items():
        strategy = toy.build(kind, world, seed=1)  # other weights, so that what is right was read
        strategy.load_state(folder / kind / "saved", optimizer=True)
        steps = len(report.course.losses)
        report.resumed = toy.train(strategy, range(SAVED if kind in KINDS else BRIEF_SAVED, steps))
        strategy.save_state(folder / kind / "resumed")
        report.accumulated = toy.train(strategy, range(steps + 1, steps + 3), accumulate=2)
        if kind in READS:
            strategy.load_state(folder / READS[kind] / "saved", optimizer=True)
            report.read = toy.train(strategy, range(SAVED, STEPS))
    leave_world()
    return reports


def _train(strategy: Strategy, folder: Path, steps: int, saved: int) -> Report:
    """Trains `steps` steps, then a bad one, then two more; saves at the start, at `saved` and behind the bad step."""
    if strategy.config.compute_dtype == "bfloat16":
        strategy.save_state(folder / "start")
    first = toy.train(strategy, range(saved))
    strategy.save_state(folder / "saved")
    evaluated = toy.evaluate(strategy), toy.evaluate(strategy)
    rest = toy.train(strategy, range(saved, steps))
    bad = toy.train(strategy, range(steps, steps + 1), poisoned=True)
    strategy.save_state(folder / "end")
    after = toy.train(strategy, range(steps + 1, steps + 3))
    return Report(toy.Course(first.losses + rest.losses, first.norms + rest.norms), evaluated, bad, after)


def _train_alone(folder: Path) -> dict[str, Report]:
    """One rank: from the same start, and on from what two ranks saved."""
    from mres.supervise.world import join_world, leave_world

    world = join_world(toy.config_of("fsdp").timeout_s)
    strategies = {kind: toy.build(kind, world) for kind in ("single", "fsdp", "zero2", "zero3")}
    reports = {kind: Report(course=toy.train(strategy, range(3))) for kind, strategy in strategies.items()}
    for kind, strategy in strategies.items():
        strategy.load_state(folder / "zero1" / "saved", optimizer=True)
        reports[kind].resumed = toy.train(strategy, range(SAVED, STEPS))
        # Weights alone: what was learned since stays in the moments.
        strategy.load_state(folder / "zero1" / "saved", optimizer=False)
        reports[kind].evaluated = (toy.evaluate(strategy),)
    reports["zero2"].refusal = _load_uneven(strategies["single"], strategies["zero2"], folder / "uneven")
    leave_world()
    return reports


def _load_uneven(source: Strategy, target: Strategy, folder: Path) -> str:
    """What `target` says to a checkpoint in which one parameter was stepped less often than its neighbours."""
    next(iter(source._optimizer.state.values()))["step"] -= 1  # type: ignore[attr-defined]
    source.save_state(folder)
    try:
        target.load_state(folder, optimizer=True)
    except UserError as error:
        return str(error)
    return ""


def _write_output_to(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def reports(folder: Path) -> Reports:
    return Reports(folder)


@pytest.fixture(scope="module")
def alone(folder: Path, reports: Reports) -> dict[str, Report]:
    assert reports["zero1"]
    return run_distributed(_train_alone, 1, folder)[0]


@pytest.mark.parametrize("kind", KINDS[1:])
def test_losses_norms_and_weights_are_those_of_one_process(kind: str, reports: Reports, folder: Path) -> None:
    course, single = reports[kind].course, reports["single"].course
    assert course.losses == pytest.approx(single.losses, rel=1e-6)
    assert course.norms == pytest.approx(single.norms, rel=3e-6)
    assert toy.farthest_weights(toy.read(folder / "single" / "end"), toy.read(folder / kind / "end")) < 1e-4


def test_the_course_says_something(reports: Reports) -> None:
    single = reports["single"].course
    assert sum(single.losses[-5:]) < 0.92 * sum(single.losses[:5])
    assert sum(norm > toy.ADAMW.max_grad_norm for norm in single.norms) > STEPS / 2, "clipping must have been active"
    assert min(single.norms) < toy.ADAMW.max_grad_norm, "and not always"


@pytest.mark.parametrize("kind", KINDS[1:])
def test_checkpoints_have_one_form(kind: str, reports: Reports, folder: Path) -> None:
    assert reports[kind]
    one, other = toy.read(folder / "single" / "saved"), toy.read(folder / kind / "saved")
    assert {n: (t.shape, t.dtype) for n, t in one.items()} == {n: (t.shape, t.dtype) for n, t in other.items()}
    assert all(float(t) == SAVED for n, t in other.items() if n.endswith(".step"))


@pytest.mark.parametrize("kind", tiered(HALF))
def test_masters_are_not_rounded(kind: str, reports: Reports, folder: Path) -> None:
    assert reports[kind]
    start = toy.read(folder / kind / "start")
    toy.assert_same(toy.weights(seed=0), {n: t for n, t in start.items() if n.startswith("model.")})


@pytest.mark.parametrize("kind", ALL)
def test_resumes_bit_for_bit(kind: str, reports: Reports) -> None:
    report = reports[kind]
    rest = slice(SAVED if kind in KINDS else BRIEF_SAVED, None)
    assert report.resumed.losses == report.course.losses[rest]
    assert report.resumed.norms == report.course.norms[rest]


@pytest.mark.parametrize("kind", ALL)
def test_a_bad_step_of_one_rank_moves_nothing_anywhere(kind: str, reports: Reports, folder: Path) -> None:
    (norm,) = reports[kind].bad.norms
    assert norm - norm != 0
    # The resumed training did not meet the bad step.
    toy.assert_same(toy.read(folder / kind / "resumed"), toy.read(folder / kind / "end"))
    reference = reports[REFERENCE[kind]].after.losses
    assert reports[kind].after.losses == pytest.approx(reference, rel=1e-2 if kind in HALF else 1e-5)


@pytest.mark.parametrize("kind", ALL)
def test_accumulation_changes_nothing(kind: str, reports: Reports) -> None:
    accumulated, whole = reports[kind].accumulated, reports[kind].after
    assert accumulated.losses == pytest.approx(whole.losses, rel=1e-2 if kind in HALF else 2e-6)
    assert accumulated.norms == pytest.approx(whole.norms, rel=5e-2 if kind in HALF else 1e-5)


@pytest.mark.parametrize(("kind", "source"), READS.items())
def test_resumes_from_another_strategy(kind: str, source: str, reports: Reports) -> None:
    assert reports[kind].read.losses == pytest.approx(reports[source].course.losses[SAVED:], rel=1e-5)


@pytest.mark.parametrize("kind", ALL)
def test_evaluating_in_between_repeats(kind: str, reports: Reports) -> None:
    once, again = reports[kind].evaluated
    assert once == again
    assert once == pytest.approx(reports[REFERENCE[kind]].evaluated[0], rel=0.1 if kind in HALF else 1e-4)


@pytest.mark.parametrize("kind", tiered(BRIEF))
def test_brief_courses_are_those_of_one_process(kind: str, reports: Reports) -> None:
    assert reports[kind].course.losses == pytest.approx(reports["single"].course.losses[:BRIEF_STEPS], rel=1e-6)
    assert reports[kind].course.norms == pytest.approx(reports["single"].course.norms[:BRIEF_STEPS], rel=3e-6)


@pytest.mark.parametrize("kind", tiered(HALF))
def test_bfloat16_is_one_rule(kind: str, reports: Reports) -> None:
    """All round weights and inputs and nothing else; what is left is where shares, and blocks' borders, are rounded."""
    losses, norms = reports[kind].course.losses, reports[kind].course.norms
    assert losses == pytest.approx(reports["single-bf16"].course.losses, rel=1e-3)
    assert norms == pytest.approx(reports["single-bf16"].course.norms, rel=2e-2)
    assert losses == pytest.approx(reports["single"].course.losses[:BRIEF_STEPS], rel=5e-3)


@pytest.mark.parametrize("kind", tiered(kind for kind in (*KINDS, *BRIEF, *HALF) if kind.startswith("zero")))
def test_no_rank_writes_the_whole(kind: str, reports: Reports, folder: Path) -> None:
    assert reports[kind]
    sizes = [file.stat().st_size for file in (folder / kind / "saved").glob("*.distcp")]
    assert len(sizes) == 2
    assert max(sizes) < 0.6 * sum(sizes)


def test_backends_say_nothing_but_the_bad_step(reports: Reports, folder: Path) -> None:
    assert reports["single"]
    outputs = list(folder.glob("output-*"))
    assert len(outputs) >= 2
    lines = [line for output in outputs for line in output.read_text().splitlines()]
    assert [line for line in lines if "OVERFLOW! Skipping step" not in line] == []


def test_fsdp_of_one_rank_is_one_process(alone: dict[str, Report]) -> None:
    """To the last bit but one: FSDP's hooks change in which order backward adds up what reaches a tensor used thrice."""
    assert alone["fsdp"].course.losses == pytest.approx(alone["single"].course.losses, rel=3e-7)
    assert alone["fsdp"].course.norms == pytest.approx(alone["single"].course.norms, rel=3e-7)


@pytest.mark.parametrize("kind", ["single", "fsdp", "zero2", "zero3"])
def test_one_rank_goes_on_from_two(kind: str, alone: dict[str, Report], reports: Reports) -> None:
    assert alone[kind].course.losses == pytest.approx(reports["single"].course.losses[:3], rel=1e-6)
    assert alone[kind].resumed.losses == pytest.approx(reports["zero1"].course.losses[SAVED:], rel=1e-5)
    assert alone[kind].evaluated[0] == pytest.approx(reports["zero1"].evaluated[0], rel=1e-4)


def test_zero_refuses_step_counts_that_it_cannot_keep(alone: dict[str, Report]) -> None:
    refusal = alone["zero2"].refusal
    assert re.search(r"19 steps for '[\w.]+' and 20 for '[\w.]+'", refusal), refusal
    assert "go on with the strategy that wrote it" in refusal
