"""From names and shapes to a model that is spread: values are those of one process, whatever the strategy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import toy_training as toy
from benchmarks.peak import MODELS, rank_peaks, whole_mb
from tiny_model import outline
from torch import Tensor, nn

from mres.model.initial import initial_weights
from mres.model.unires.config import UniresConfig
from mres.model.unires.unires import UniRES
from mres.parallel.config import ParallelConfig
from mres.parallel.factory import build_strategy
from mres.parallel.materialise import materialise
from mres.parallel.strategy import Strategy
from mres.supervise.world import World, join_world, leave_world
from mres.testing import run_distributed
from mres.train.optim import parameter_groups

CPU = torch.device("cpu")
KINDS = {
    "ddp": {"strategy": "ddp"},
    "fsdp": {"strategy": "fsdp"},
    "fsdp, a copy a rank": {"strategy": "fsdp", "shard_ranks": 1},
    "fsdp, bfloat16": {"strategy": "fsdp", "compute_dtype": "bfloat16"},
    "zero 2, bfloat16": {"strategy": "zero", "zero_stage": 2, "compute_dtype": "bfloat16"},
    "zero 3": {"strategy": "zero", "zero_stage": 3},
    "zero 3, bfloat16": {"strategy": "zero", "zero_stage": 3, "compute_dtype": "bfloat16"},
}


def expected() -> dict[str, Tensor]:
    """The weights as one process draws them."""
    return dict(initial_weights(UniRES(toy.model_config()), 7))


def wrapped(changes: dict, world: World) -> tuple[Strategy, Iterator[tuple[str, Tensor]]]:
    """A strategy with a model that has memory and no values, and the values."""
    model = outline(toy.model_config())
    weights = initial_weights(model, 7)
    strategy = build_strategy(ParallelConfig.model_validate(changes), world)
    type(strategy).own_unit_from = type(strategy).persist_below = 1000  # type: ignore[attr-defined]
    strategy.wrap(model, model.blocks(), parameter_groups(model, 0.05), toy.ADAMW)
    return strategy, weights


def shares_of_all() -> dict[str, Any]:
    """One rank's shares under every kind, and what was not finite before, after, and where a value is infinite."""
    world = join_world(ParallelConfig(strategy="ddp").timeout_s)
    found: dict[str, Any] = {}
    for kind, changes in KINDS.items():
        strategy, weights = wrapped(changes, world)
        before = strategy.not_finite()
        strategy.load_weights(weights)
        shares = {name: share.detach().float().numpy().copy() for name, share in strategy.weight_shares()}
        found[kind] = {"before": before, "after": strategy.not_finite(), "shares": shares}
        found[kind]["loss"] = toy.train(strategy, range(1)).losses
    strategy, weights = wrapped(KINDS["fsdp"], world)
    strategy.load_weights((name, _spoiled(value) if name == "head.kernel.weight" else value) for name, value in weights)
    found["spoiled"] = strategy.not_finite()
    leave_world()
    return found


def _spoiled(value: Tensor) -> Tensor:
    """Infinite in the last row, which the last rank has."""
    value[-1, -1] = torch.inf
    return value


@pytest.fixture(scope="module")
def ranks() -> list[dict]:
    return run_distributed(shares_of_all, 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_shares_put_together_are_the_weights_of_one_process(kind: str, ranks: list[dict]) -> None:
    whole = kind == "ddp" or kind == "fsdp, a copy a rank"
    for name, value in expected().items():
        shares = [rank[kind]["shares"][name] for rank in ranks]
        if whole:
            assert all(np.array_equal(share, value.numpy()) for share in shares), name
        else:
            joined = np.concatenate([share.reshape(-1) for share in shares])
            assert np.array_equal(joined, value.numpy().reshape(-1)), name
    held = [sum(share.size for share in rank[kind]["shares"].values()) for rank in ranks]
    assert sum(held) == (2 if whole else 1) * sum(value.numel() for value in expected().values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_nobody_filled_is_found(kind: str, ranks: list[dict]) -> None:
    assert ranks[0][kind]["before"] == ranks[1][kind]["before"] == sorted(expected())
    assert ranks[0][kind]["after"] == []


@pytest.mark.slow
def test_training_starts_at_the_same_loss(ranks: list[dict]) -> None:
    losses = {kind: ranks[0][kind]["loss"][0] for kind in KINDS}
    for kind, loss in losses.items():
        assert loss == pytest.approx(losses["ddp"], rel=0.02 if "bfloat16" in kind else 1e-6), kind


@pytest.mark.slow
def test_all_ranks_learn_what_one_of_them_holds(ranks: list[dict]) -> None:
    assert [rank["spoiled"] for rank in ranks] == [["head.kernel.weight"]] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "start", "step"), [("fsdp", 0.5, 1.3), pytest.param("zero 3", 1.4, 2.1, marks=pytest.mark.exhaustive)]
)
def test_no_rank_ever_holds_the_whole_model(kind: str, start: float, step: float) -> None:
    """Measured: resident memory of four ranks in weights of the whole model, of which all there is would be four (ZeRO 3
    has moments and gradients from the start): while they get their weights, each tensor drawn whole and cut at once, and
    until the first step is made."""
    model = UniresConfig.model_validate(MODELS["smaller"])
    peaks = run_distributed(rank_peaks, 4, kind, model)
    whole = whole_mb(model)
    # Some of its quarter may lie in memory that the small model left.
    assert all(0.1 * whole < rank["start"] < start * whole for rank in peaks), (peaks, whole)
    assert all(rank["step"] < step * whole for rank in peaks), (peaks, whole)


def test_memory_is_filled_with_nan_and_what_has_values_keeps_them() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    model.register_buffer("places", torch.arange(3))
    model[1].weight = nn.Parameter(torch.full((4,), 2.0))
    model[0].bias.requires_grad_(False)
    materialise(model, CPU)
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert torch.isnan(model[0].weight).all()
    assert torch.equal(model[1].weight, torch.full((4,), 2.0))
    assert torch.equal(model.places, torch.arange(3))
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["0.bias"]


def test_parameters_and_buffers_of_several_modules_stay_one() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    for layer in model:
        layer.register_buffer("places", torch.arange(3) if layer is model[0] else model[0].places)
    materialise(model, CPU)
    assert model[1].weight is model[0].weight
    assert model[1].places is model[0].places
    assert len(list(model.parameters())) == 3


def test_a_layer_that_is_used_twice_stays_one() -> None:
    model = outline(toy.model_config())
    materialise(model, CPU)
    assert model.high_filter is model.low_filter
    assert len(list(model.parameters())) == len(expected())
