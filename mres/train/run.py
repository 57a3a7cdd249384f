"""The command line of training: everything that can be refused is refused here, before torch loads.

From a config to the optimizer's step, each calling the next:
    main               mres/train/run.py: parses and checks the config, holds the run's folder
    train              mres/train/session.py: joins the ranks
    _Session.run       mres/train/session.py: where the run goes on, model, strategy, weights
    _Session._fit      mres/train/session.py: the trainer; going back where training diverged
    Trainer.fit        mres/train/trainer.py: the loop
    step               mres/parallel/native.py (or zero/strategy.py): clips, moves the weights
"""

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from mres.cli import config_parser, parse
from mres.config import Config
from mres.errors import UserError, near
from mres.ranks import check_ranks
from mres.run_folder import held
from mres.stream.config import local_batch_size
from mres.stream.order import Order
from mres.stream.sets import TrainingSets, open_set
from mres.supervise.rank_env import local_size, read_rank_env, world_size
from mres.train.callback import callback_class
from mres.train.schedule import warmup_steps


def main(argv: Sequence[str]) -> int:
    """Runs `launch/train.py` with `argv`; returns the exit code (75: stopped early by a signal, can go on).

    Raises:
        UserError: a config, path or environment that cannot work.
    """
    parser = config_parser(
        "launch/train.py",
        "Trains a model under plain python, torchrun, deepspeed or srun; the same config under each.",
        "example: torchrun --nproc-per-node 2 launch/train.py --config configs/demo.yaml optim.lr=1e-3 train.steps=100",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and the plan, train nothing")
    arguments, config = parse(parser, argv)
    is_main = arguments.dry_run or read_rank_env().rank == 0  # a plan needs no rank
    check_ranks(config, world_size(), local_size())
    sets = TrainingSets.open(config.data)
    check_evaluation(config)
    check_weights(config)
    check_kinds(config, sets)
    for reference in config.train.callbacks:
        callback_class(reference)
    sets.check_cache(config.data, slots_of_machine(config))
    warn_of_warmup(config, sets)
    shortage = sets.shortage(config.data.expressions_per_image)
    if arguments.dry_run:
        if shortage:  # a run says it in its log
            print(f"warning: {shortage}", file=sys.stderr)
        print(config.to_yaml(), end="")
        print(plan(config, sets))
        return 0
    with held(config.run_dir) if is_main else nullcontext():
        from mres.train.session import train

        return train(config, sets)


def slots_of_machine(config: Config) -> int:
    """Slots of the global batch that the ranks of this machine fill together."""
    return local_batch_size(config.data.images_per_batch, world_size()) * (local_size() or 1)


def check_weights(config: Config) -> None:
    """Weights that are not there are refused here; what is in them, when they are read.

    A run that goes on from its own checkpoint does not read them again.
    """
    resume = config.checkpoint.resume
    if resume == "auto" and any((config.run_dir / "checkpoints").glob("step-*/MANIFEST.json")):
        return
    named = {key: getattr(config.checkpoint, key) for key in ("init_from", "text_weights", "image_weights")}
    if resume not in ("auto", "never"):
        named["resume"] = resume
    for key, path in named.items():
        if path is not None and not Path(path).exists():
            default = "auto" if key == "resume" else "null"
            raise UserError(
                f"checkpoint.{key}='{path}' does not exist; name another path, or go without (checkpoint.{key}={default})"
            )


def check_kinds(config: Config, sets: TrainingSets) -> None:
    """A weight for a kind that the data does not have would have no effect."""
    known = {kind for kinds in sets.expressions_by_kind.values() for kind in kinds}
    for kind in config.data.kind_weights:
        if kind not in known:
            hint = near(kind, known, otherwise=f"it has {', '.join(sorted(known - {''})) or 'no kinds'}")
            raise UserError(
                f"data.kind_weights names '{kind}', and '{sets.where}' has no such expressions; {hint} "
                "(data.kind_weights={} draws all alike)"
            )


def warn_of_warmup(config: Config, sets: TrainingSets) -> None:
    order = sets.order(config.data, config.run.seed)
    steps = config.train.total_steps(order.steps_per_epoch)
    warmup = warmup_steps(config.optim, order.steps_per_epoch)
    epochs = config.optim.warmup_epochs
    given = f"warmup_steps={warmup}" if epochs is None else f"warmup_epochs={epochs:g}"
    if warmup >= steps and os.environ.get("RANK", "0") == "0":
        print(
            f"warning: optim.{given} is not below the run's "
            f"{steps} steps, so the rate never comes down from its warm-up; lower it, or raise train.steps (train.epochs)",
            file=sys.stderr,
        )


def check_evaluation(config: Config) -> None:
    """What evaluations during training read must be there before the first step, not at the first of them."""
    best, every = config.checkpoint.keep_best, config.checkpoint.every
    if best is not None and (config.evaluate.every is None or config.evaluate.every % every):
        raise UserError(
            f"checkpoint.keep_best={best} needs evaluations where there are checkpoints; set evaluate.every to "
            f"{every} (checkpoint.every) or a multiple of it"
        )
    if config.evaluate.every is None:
        return
    if config.data.val is None:
        raise UserError("evaluate.every is set and data.val is not; name a held-out shard folder or remove it")
    if config.evaluate.weights == "ema" and config.optim.ema_decay is None:
        raise UserError(
            "evaluate.weights=ema needs a moving average of the weights; set optim.ema_decay, such as to 0.999"
        )
    open_set(config.data.val, config.data)


def plan(config: Config, sets: TrainingSets) -> str:
    """What a run would do, in words."""
    order = sets.order(config.data, config.run.seed)
    steps = config.train.total_steps(order.steps_per_epoch)
    return (
        f"# plan: {sets.num_images:,} images with {sets.num_expressions:,} expressions{_mixture(sets, order)}; "
        f"{order.steps_per_epoch} steps an epoch; {steps} steps = {steps / order.steps_per_epoch:.2f} epochs; "
        f"a step takes {config.data.images_per_batch} images x up to {config.data.expressions_per_image} expressions "
        f"over {world_size()} rank(s); run folder {config.run_dir}"
    )


def _mixture(sets: TrainingSets, order: Order) -> str:
    """What an epoch takes of each of several sets."""
    if len(sets) == 1:
        return ""
    parts = [f"{draws:,} of {s.location} ({len(s):,})" for draws, s in zip(order.draws, sets, strict=True)]
    return f" in {len(sets)} sets, an epoch takes {', '.join(parts)}"
