"""From any strategy and world size to any other, and no bit of the state is another: loaded and saved, with no step between.

The state is not a trained one but any bits: each tensor its own, with -0.0, subnormal and huge values in it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import toy_training as toy
from torch import Tensor, nn

from mres.dcp.local_shards import LocalShard
from mres.dcp.staging import write_shards
from mres.errors import UserError
from mres.parallel.factory import build_strategy
from mres.parallel.strategy import ParameterGroup, Strategy
from mres.supervise.world import join_world, leave_world
from mres.testing import run_distributed

# Kind and number of ranks; every kind reads what another one wrote on another number of ranks.
CHAIN = [
    ("fsdp", 4), ("zero3", 2), ("ddp", 1), ("fsdp", 3), ("zero1", 2), ("single", 1), ("hsdp2", 4), ("zero2", 3),
    ("zero3-offload", 4), ("ddp", 3), ("zero1-bf16", 2), ("fsdp-offload", 2), ("zero3-bf16", 3), ("zero2", 1),
    ("hsdp1", 2),
]  # fmt: skip
STEP = 7
pytestmark = pytest.mark.slow


class Odd(nn.Module):
    """Sizes that no number of ranks divides, one weight under two names, a frozen part, a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Conv1d(5, 17, 3)
        self.norm = nn.LayerNorm(13)
        self.first, self.again = nn.Linear(13, 11, bias=False), nn.Linear(13, 11, bias=False)
        self.again.weight = self.first.weight
        self.frozen = nn.Linear(7, 9).requires_grad_(False)
        self.one = nn.Parameter(torch.zeros(1))
        self.deep = nn.Parameter(torch.zeros(2, 3, 1, 5))
        self.register_buffer("places", torch.arange(6.0), persistent=False)


def built(kind: str) -> Strategy:
    config = toy.config_of(kind)
    strategy = build_strategy(config, join_world(config.timeout_s))
    if kind.startswith("zero"):
        type(strategy).persist_below = 20  # type: ignore[attr-defined]  # some whole on every rank, some partitioned
    torch.manual_seed(1)
    model = Odd()
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    groups = [
        ParameterGroup(tuple(n for n, p in named.items() if (p.dim() > 1) == decays), 0.1 * decays)
        for decays in (True, False)
    ]
    strategy.wrap(model, [model.block], groups, toy.ADAMW)
    strategy.track_average()
    return strategy


def any_state() -> dict[str, Tensor]:
    """Values for every neutral name of `Odd`."""
    draw = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}
    for name, parameter in Odd().named_parameters():
        moving = (f"optim.{name}.exp_avg", f"optim.{name}.exp_avg_sq", f"ema.{name}") if parameter.requires_grad else ()
        for neutral in (f"model.{name}", *moving):
            state[neutral] = torch.randn(parameter.shape, generator=draw)
            odd = torch.tensor([-0.0, 1e-42, 3e38, 1 / 3])[: parameter.numel()]
            state[neutral].view(-1)[: odd.numel()] = odd
        if moving:
            state[f"optim.{name}.step"] = torch.tensor(float(STEP))
    return state


def write_start(folder: Path) -> None:
    join_world(toy.config_of("single").timeout_s)
    write_shards({name: LocalShard.of(tensor) for name, tensor in any_state().items()}, folder / "start", None)
    less = {name: tensor for name, tensor in any_state().items() if name != "optim.norm.bias.exp_avg"}
    write_shards({name: LocalShard.of(tensor) for name, tensor in less.items()}, folder / "less", None)
    more = any_state() | {"optim.frozen.bias.exp_avg": torch.zeros(9)}
    write_shards({name: LocalShard.of(tensor) for name, tensor in more.items()}, folder / "more", None)
    leave_world()


def pass_on(kind: str, source: Path, target: Path) -> None:
    strategy = built(kind)
    strategy.load_state(source, optimizer=True)
    staged = strategy.stage()
    strategy.save_state(target)
    strategy.write_staged(staged, target.with_suffix(".staged"))
    leave_world()


def refuse(kind: str, folder: Path) -> None:
    strategy = built(kind)
    for name in ("less", "more"):
        try:
            strategy.load_state(folder / name, optimizer=True)
        except UserError as error:
            (folder / f"{name}-{kind}-{strategy.world.rank}").write_text(str(error))
    leave_world()


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elastic-state")
    run_distributed(write_start, 1, folder)
    return folder


@pytest.fixture(scope="module")
def folder(started: Path) -> Path:
    folder, source = started, started / "start"
    for number, (kind, size) in enumerate(CHAIN):
        target = folder / f"{number}-{kind}-{size}"
        run_distributed(pass_on, size, kind, source, target)
        source = target
    return folder


def bits(state: dict[str, Tensor]) -> dict[str, list[int]]:
    return {name: tensor.contiguous().view(torch.int32).flatten().tolist() for name, tensor in state.items()}


@pytest.mark.exhaustive  # test_ema_freeze.py has strategies read each other's, to the bit
@pytest.mark.parametrize(("number", "kind", "size"), [(n, *step) for n, step in enumerate(CHAIN)])
def test_every_bit_arrives(number: int, kind: str, size: int, folder: Path) -> None:
    saved = toy.read(folder / f"{number}-{kind}-{size}")
    expected = any_state()
    assert {name: tensor.shape for name, tensor in saved.items()} == {n: t.shape for n, t in expected.items()}
    assert bits(saved) == bits(expected)
    assert bits(toy.read(folder / f"{number}-{kind}-{size}.staged")) == bits(expected)


@pytest.mark.parametrize("kind", ["fsdp", "zero2"])
def test_moments_that_are_missing_or_too_many_are_named_on_every_rank(kind: str, started: Path) -> None:
    run_distributed(refuse, 2, kind, started)
    for rank in (0, 1):
        assert "has no tensor 'optim.norm.bias.exp_avg'" in (started / f"less-{kind}-{rank}").read_text()
        assert "the optimizer's state of 'frozen.bias', which does not" in (started / f"more-{kind}-{rank}").read_text()
