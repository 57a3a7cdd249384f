"""The command line of training: everything that can be refused is refused here, before torch loads."""

import difflib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

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
    check_weights(config)
    check_kinds(config, shards)
    warn_of_warmup(config, shards)
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


def check_weights(config: Config) -> None:
    """Weights that are not there are refused here; what is in them, when they are read.

    A run that goes on from its own checkpoint does not read them again.
    """
    resume = config.checkpoint.resume
    if resume == "auto" and any((config.run_dir / "checkpoints").glob("step-*/MANIFEST.json")):
        return
    named = {"init_from": config.checkpoint.init_from, "text_weights": config.checkpoint.text_weights}
    if resume not in ("auto", "never"):
        named["resume"] = resume
    for key, path in named.items():
        if path is not None and not Path(path).exists():
            default = "auto" if key == "resume" else "null"
            raise UserError(
                f"checkpoint.{key}='{path}' does not exist; name another path, or go without (checkpoint.{key}={default})"
            )


def check_kinds(config: Config, shards: ShardSet) -> None:
    """A weight for a kind that the data does not have would have no effect."""
    known = {kind for kinds in shards.manifest.counts.expressions_by_kind.values() for kind in kinds}
    for kind in config.data.kind_weights:
        if kind not in known:
            near = difflib.get_close_matches(kind, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(sorted(known))}"
            raise UserError(f"data.kind_weights names '{kind}', and '{shards.folder}' has no such expressions; {hint}")


def warn_of_warmup(config: Config, shards: ShardSet) -> None:
    order = Order(config.run.seed, len(shards), config.data.images_per_batch)
    steps = config.train.total_steps(order.steps_per_epoch)
    if config.optim.warmup_steps >= steps and os.environ.get("RANK", "0") == "0":
        print(
            f"warning: optim.warmup_steps={config.optim.warmup_steps} is not below the run's {steps} steps, so the rate never "
            f"comes down from its warm-up; lower it, or raise train.steps (train.epochs)",
            file=sys.stderr,
        )


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
