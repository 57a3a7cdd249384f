"""A tiny UniRES on synthetic batches, trained under any strategy; runs in the processes of `run_distributed`.

Shapes: B images, S side, K expressions an image, T tokens, h side of the grid of logits.
"""

from __future__ import annotations

import math
import warnings
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from mres.model.config import LossConfig
from mres.model.loss import mask_losses
from mres.model.unires.config import UniresConfig
from mres.parallel.config import ParallelConfig
from mres.parallel.factory import build_strategy
from mres.parallel.strategy import AdamW, Strategy
from mres.supervise.world import World
from mres.train.optim import parameter_groups

if TYPE_CHECKING:
    from mres.model.unires.unires import UniRES

IMAGES, EXPRESSIONS, SIDE, TOKENS = 4, 3, 32, 8
LR = 3e-4
ADAMW = AdamW((0.9, 0.99), 1e-8, max_grad_norm=1.0)


_FLAGS: dict[str, dict] = {
    "bf16": {"compute_dtype": "bfloat16"},
    "f64": {"compute_dtype": "float64"},
    "offload": {"offload": "cpu"},
    "gathered": {"reshard_after_forward": False},
    "block": {"activation_checkpointing": "block"},
    "selective": {"activation_checkpointing": "selective"},
    "compiled": {"compile": True},
    "timed": {"timeout_s": 77},
    "tuned": {"ds_config": str(Path(__file__).with_name("tuned.json"))},
}


def config_of(kind: str) -> ParallelConfig:
    """ "zero3", "hsdp2" (two ranks share a copy), "fsdp-bf16" or "zero1-offload" to a config."""
    name, *flags = kind.split("-")
    options: dict = {}
    for flag in flags:
        options |= _FLAGS[flag]
    if name.startswith("zero"):
        return ParallelConfig(strategy="zero", zero_stage=int(name[-1]), **options)
    if name.startswith("hsdp"):
        return ParallelConfig(strategy="fsdp", shard_ranks=int(name[-1]), **options)
    return ParallelConfig(strategy=name, **options)


def model_config() -> UniresConfig:
    """Small, with sizes that do not divide by the number of ranks (kernel bias: 17) and a filter that is used twice."""
    return UniresConfig(
        size="tiny", image_size=SIDE, vision_width=32, vision_depth=2, vision_heads=2, text_width=32, text_depth=1,
        text_vocab_size=1024, text_length=TOKENS, decoder_width=32, decoder_heads=2, low_group_tokens=4,
        high_group_tokens=3, filter_shared=True,
    )  # fmt: skip


def model_of(seed: int) -> UniRES:
    from mres.model.unires.unires import UniRES

    torch.manual_seed(seed)
    return UniRES(model_config())


def weights(seed: int) -> dict[str, Tensor]:
    return {f"model.{name}": parameter.detach() for name, parameter in model_of(seed).named_parameters()}


def build(kind: str, world: World, *, seed: int = 0) -> Strategy:
    model = model_of(seed)
    world = World(0, 1, 0, 1, world.device) if kind.startswith("single") else world
    strategy = build_strategy(config_of(kind), world)
    if kind.startswith("zero"):
        type(strategy).persist_below = 1000  # some parameters whole, some partitioned, also in a tiny model
    if kind.startswith(("fsdp", "hsdp")):
        type(strategy).own_unit_from = 1000  # blocks of a tiny model as units of their own, as large ones are
    blocks = model.blocks()
    if strategy.config.compile:  # of all kinds of blocks one: each takes some seconds
        torch._dynamo.reset()
        blocks = blocks[-1:]
    strategy.wrap(model, blocks, parameter_groups(model, 0.05), ADAMW)
    return strategy


def batch(step: int, num_images: int = IMAGES) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The global batch of a step: image_BCSS, text_BKT, mask_BKhh, valid_BK; how many are valid differs from half to half."""
    draw = torch.Generator().manual_seed(1000 + step)
    image = torch.randn(num_images, 3, SIDE, SIDE, generator=draw)
    text = torch.randint(1, 1000, (num_images, EXPRESSIONS, TOKENS), generator=draw, dtype=torch.int32)
    text[..., -2], text[..., -1] = 1023, 0  # end of text, padding
    # Something that can be learned smoothly: on noise, training is chaotic and any rounding grows from step to step.
    mask = (torch.nn.functional.avg_pool2d(image[:, :1], 2) > 0.3).float().repeat(1, EXPRESSIONS, 1, 1)
    valid = torch.rand(num_images, EXPRESSIONS, generator=draw) > 0.4
    valid[0, 0] = True
    return image, text, mask, valid


def learning_rate(step: int) -> float:
    return LR * min(1.0, (step + 1) / 4) * 0.5 * (1 + math.cos(math.pi * step / 30))


@dataclass
class Course:
    """Losses of global batches and gradient norms, step by step."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)


def train(
    strategy: Strategy, steps: range, *, accumulate: int = 1, poisoned: bool = False, num_images: int = IMAGES
) -> Course:
    """Trains on the batches of `steps`; `poisoned`: the last rank's last loss is NaN in each."""
    course, world = Course(), strategy.world
    for step in steps:
        total = torch.zeros((), dtype=torch.float64)
        whole = batch(step, num_images)
        share = [tensor.chunk(world.size)[world.rank] for tensor in whole]
        num_valid = float(whole[3].sum())
        for number in range(accumulate):
            image, text, mask, valid = (tensor.chunk(accumulate)[number] for tensor in share)
            with ExitStack() as stack:
                stack.enter_context(strategy.micro_batch(last=number + 1 == accumulate))
                loss = mask_losses(strategy.module(image, text), mask, valid, LossConfig())["loss"]
                if poisoned and world.rank + 1 == world.size and number + 1 == accumulate:
                    loss = loss * float("nan")
                strategy.backward(loss * (world.size / num_valid))
            total += loss.detach() / num_valid
        course.norms.append(float(strategy.step(learning_rate(step))))
        course.losses.append(float(strategy.all_reduce(total) if world.size > 1 else total))
    return course


def evaluate(strategy: Strategy) -> float:
    """A forward pass in between, as the trainer's evaluation does it."""
    module = strategy.module
    module.eval()
    with torch.no_grad():
        logits = module(*batch(99)[:2])
    module.train()
    return float(logits.float().mean())


def read(folder: Path) -> dict[str, Tensor]:
    """All that a checkpoint holds."""
    metadata = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    state = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in metadata.items()}
    with warnings.catch_warnings():  # it says that it loads in a single process
        warnings.simplefilter("ignore")
        dcp.load(state, checkpoint_id=folder, no_dist=True)
    return state


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def farthest_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of weights, where there is a gradient.

    Some have none but the rounding of sums: attention's softmax takes no notice of its key biases. AdamW makes steps of
    full size of that, in whatever direction, and nothing comes of it.
    """
    farthest = 0.0
    for name in (key.removeprefix("model.") for key in one if key.startswith("model.")):
        has_gradient = one[f"optim.{name}.exp_avg_sq"].sqrt() > 1e-6
        difference = (one[f"model.{name}"] - other[f"model.{name}"]).abs()
        farthest = max(farthest, float((difference * has_gradient).max()))
    return farthest
