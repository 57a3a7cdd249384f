"""A model with what UniRES does not have, trained under any strategy; runs in the processes of `run_distributed`.

Shapes: B images, S side, T words, N pixels, C width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import toy_training as toy
from torch import Tensor, nn

from mres.model.construction import parameters_on_meta
from mres.model.initial import Fill, initial_weights, normal
from mres.parallel.factory import build_strategy
from mres.parallel.strategy import Strategy
from mres.supervise.world import World
from mres.train.optim import freeze, parameter_groups

IMAGES, SIDE, WORDS, WIDTH, VOCABULARY = 6, 8, 5, 16, 19
LR = 3e-2


class Scale(nn.Module):
    """It has no initialisers, only a way of its own to start."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.empty(WIDTH))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.factor, 0.5, 1.5)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return x_BTC * self.factor


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(WIDTH)
        self.act = nn.PReLU(WIDTH)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x_BChw: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return x_BChw + self.act(self.norm(self.conv(x_BChw)))


class Strange(nn.Module):
    """BatchNorm, attention, integer and odd buffers, an output tied to the embedding; `own` starts by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.stem = nn.Conv2d(3, WIDTH, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(WIDTH, momentum=None)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.scale = Scale()
        self.token = nn.Parameter(torch.empty(1, 1, WIDTH))
        self.out = nn.Linear(WIDTH, VOCABULARY)
        self.out.weight = self.embed.weight
        self.register_buffer("steps", torch.tensor([7, 2**40], dtype=torch.int64))
        self.register_buffer("codes", torch.randn(3).half())
        self.register_buffer("kinds", torch.tensor([True, False]).expand(3, 2))
        self.register_buffer("small", torch.tensor([3, -4], dtype=torch.int16))
        self.register_buffer("mask", torch.full((2, 2), float("-inf")).triu(1))
        self.register_buffer("places", torch.arange(6.0), persistent=False)

    def initialisers(self) -> dict[str, Fill]:
        return {"token": normal(0.02)}

    def forward(self, image_BCSS: Tensor, text_BT: Tensor) -> Tensor:
        if self.training:
            self.steps = self.steps + 1  # another tensor each time
        x_BChw = self.norm(self.stem(image_BCSS)).relu()
        for block in self.blocks:
            x_BChw = block(x_BChw)
        pixels_BNC = x_BChw.flatten(2).transpose(1, 2)
        words_BTC = self.embed(text_BT) + self.token
        mixed_BTC, _ = self.attention(words_BTC, pixels_BNC, pixels_BNC, need_weights=False)
        return self.out(self.scale(mixed_BTC + words_BTC))


BUFFERS = {
    "steps", "codes", "kinds", "small", "mask",
    *(f"{norm}.{name}" for norm in ("norm", "blocks.0.norm", "blocks.1.norm")
      for name in ("running_mean", "running_var", "num_batches_tracked")),
    "blocks.0.calls", "blocks.1.calls",
}  # fmt: skip


def outline() -> Strange:
    torch.manual_seed(0)
    with parameters_on_meta():
        return Strange()


def build(kind: str, world: World, *, seed: int = 0, frozen: Sequence[str] = ()) -> Strategy:
    """A strategy with the model, started from `seed`."""
    model = outline()
    freeze(model, frozen)
    weights = initial_weights(model, seed)
    strategy = build_strategy(toy.config_of(kind), World(0, 1, 0, 1, world.device) if "single" in kind else world)
    for name, value in (("persist_below", 100), ("own_unit_from", 1000)):
        if hasattr(strategy, name):
            setattr(type(strategy), name, value)
    strategy.wrap(model, [*model.blocks], parameter_groups(model, 0.05), toy.ADAMW)
    strategy.load_weights(weights)
    strategy.track_average()
    return strategy


def batch(step: int) -> tuple[Tensor, Tensor]:
    """image_BCSS and text_BT of all ranks."""
    draw = torch.Generator().manual_seed(step)
    image_BCSS = torch.randn(IMAGES, 3, SIDE, SIDE, generator=draw)
    return image_BCSS, torch.randint(VOCABULARY, (IMAGES, WORDS), generator=draw)


def train(strategy: Strategy, steps: range) -> list[float]:
    """The losses of the global batches."""
    world, losses = strategy.world, []
    for step in steps:
        image, text = (tensor.chunk(world.size)[world.rank] for tensor in batch(step))
        with strategy.micro_batch(last=True):
            logits = strategy.module(image, text)
            loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), text.roll(1, 1).flatten())
            strategy.backward(loss)
        strategy.step(LR)
        assert strategy.average is not None
        strategy.average.update(0.3)
        total = strategy.all_reduce(loss.detach().clone()) if world.size > 1 else loss.detach()
        losses.append(float(total) / world.size)
    return losses
