"""The command line of training: everything that can be refused is refused here, before torch loads."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from mres.config import Config, load_config
from mres.errors import UserError
from mres.shards.reader import ShardSet
from mres.stream.order import Order


def main(argv: Sequence[str]) -> int:
    """Runs `launch/train.py` with `argv`; returns the exit code (75: stopped early by a signal, can go on).

    Raises:
        UserError: a config, path or environment that cannot work.
    """
    arguments, overrides = parser().parse_known_args(argv)
    config = load_config(arguments.config, _overrides(overrides, arguments.overrides))
    _check_local_rank(arguments.local_rank)
    shards = open_training_shards(config)
    if arguments.dry_run:
        print(config.to_yaml(), end="")
        print(plan(config, shards))
        return 0
    from mres.train.session import train

    return train(config, shards)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="launch/train.py",
        description="Trains UniRES under plain python, torchrun, deepspeed or srun; the same config under each.",
        epilog="example: torchrun --nproc-per-node 2 launch/train.py --config configs/demo.yaml optim.lr=1e-3 train.steps=100",
    )
    p.add_argument("--config", type=Path, required=True, help="YAML file; the ones that come with mres are in configs/")
    p.add_argument("overrides", nargs="*", metavar="section.key=value", help="overrides, the last one wins")
    p.add_argument("--local_rank", "--local-rank", type=int, help="appended by launchers; must agree with LOCAL_RANK")
    p.add_argument("--dry-run", action="store_true", help="print the resolved config and the plan, train nothing")
    return p


def _overrides(unknown: list[str], given: list[str]) -> list[str]:
    """argparse leaves overrides behind an option (such as the launchers' --local_rank) among the unknown."""
    for word in unknown:
        if word.startswith("-") and "=" not in word:
            raise UserError(f"unknown option '{word}' (command line); see launch/train.py --help")
    return [*given, *unknown]


def _check_local_rank(local_rank: int | None) -> None:
    if local_rank is None:
        return
    from_environment = os.environ.setdefault("LOCAL_RANK", str(local_rank))
    if from_environment != str(local_rank):
        raise UserError(f"--local_rank={local_rank} contradicts the environment's LOCAL_RANK={from_environment}; drop one")


def open_training_shards(config: Config) -> ShardSet:
    if config.data.train is None:
        raise UserError("data.train is not set; name a shard folder (python tools/shard.py build … makes one)")
    return ShardSet(config.data.train)


def plan(config: Config, shards: ShardSet) -> str:
    """What a run would do, in words."""
    order = Order(config.run.seed, len(shards), config.data.images_per_batch)
    steps = config.train.total_steps(order.steps_per_epoch)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    return (
        f"# plan: {len(shards):,} images with {int(shards.num_expressions_N.sum()):,} expressions; {order.steps_per_epoch} steps "
        f"an epoch; {steps} steps = {steps / order.steps_per_epoch:.2f} epochs; a step takes {config.data.images_per_batch} images "
        f"x up to {config.data.expressions_per_image} expressions over {world_size} rank(s); run folder {config.run_dir}"
    )
