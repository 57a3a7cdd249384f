"""The command line of training: everything that can be refused is refused here, before torch loads."""

import os
from collections.abc import Sequence

from mres.cli import config_parser, parse
from mres.config import Config
from mres.errors import UserError
from mres.shards.reader import ShardSet
from mres.stream.config import share_of_rank
from mres.stream.order import Order


def main(argv: Sequence[str]) -> int:
    """Runs `launch/train.py` with `argv`; returns the exit code (75: stopped early by a signal, can go on).

    Raises:
        UserError: a config, path or environment that cannot work.
    """
    parser = config_parser(
        "launch/train.py",
        "Trains UniRES under plain python, torchrun, deepspeed or srun; the same config under each.",
        "example: torchrun --nproc-per-node 2 launch/train.py --config configs/demo.yaml optim.lr=1e-3 train.steps=100",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and the plan, train nothing")
    arguments, config = parse(parser, argv)
    shards = training_shards(config)
    check_evaluation(config)
    if arguments.dry_run:
        print(config.to_yaml(), end="")
        print(plan(config, shards))
        return 0
    from mres.train.session import train

    return train(config, shards)


def training_shards(config: Config) -> ShardSet:
    if config.data.train is None:
        raise UserError("data.train is not set; name a shard folder (python tools/shard.py build … makes one)")
    return ShardSet(config.data.train)


def check_evaluation(config: Config) -> None:
    """What evaluations during training read must be there before the first step, not at the first of them."""
    if config.evaluate.every is None:
        return
    if config.data.val is None:
        raise UserError("evaluate.every is set and data.val is not; name a held-out shard folder or remove it")
    ShardSet(config.data.val)


def plan(config: Config, shards: ShardSet) -> str:
    """What a run would do, in words."""
    order = Order(config.run.seed, len(shards), config.data.images_per_batch)
    steps = config.train.total_steps(order.steps_per_epoch)
    world_size = _world_size()
    share_of_rank(config.data.images_per_batch, world_size)
    return (
        f"# plan: {len(shards):,} images with {int(shards.num_expressions_N.sum()):,} expressions; "
        f"{order.steps_per_epoch} steps an epoch; {steps} steps = {steps / order.steps_per_epoch:.2f} epochs; "
        f"a step takes {config.data.images_per_batch} images x up to {config.data.expressions_per_image} expressions "
        f"over {world_size} rank(s); run folder {config.run_dir}"
    )


def _world_size() -> int:
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"the environment variable WORLD_SIZE={text!r} is not a number of ranks")
    return int(text)
