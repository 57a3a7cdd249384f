"""What training refuses before torch loads: asked on the login node before a job is submitted, and again at its start."""

import os
import sys
from pathlib import Path

from mres.config import Config
from mres.errors import UserError, near
from mres.ranks import check_ranks
from mres.stream.config import local_batch_size
from mres.stream.sets import TrainingSets, open_set
from mres.train.callback import callback_class
from mres.train.schedule import warmup_steps


def check_settings(config: Config, size: int, local_size: int | None) -> None:
    """What the config and the files of code that it names tell, for `size` ranks of which a machine has `local_size`.

    Raises:
        UserError: keys that do not fit each other or the ranks, a callback that is none.
    """
    check_ranks(config, size, local_size)
    check_evaluation(config)
    for reference in config.train.callbacks:
        callback_class(reference)


def open_sets(config: Config, size: int, local_size: int | None) -> TrainingSets:
    """The sets to train on; what the run reads besides is there, and fits.

    Raises:
        UserError: data or weights that are not there or are damaged, and keys that do not fit them.
    """
    sets = TrainingSets.open(config.data)
    if config.evaluate.every is not None and config.data.val is not None:
        open_set(config.data.val, config.data)
    check_weights(config)
    check_kinds(config, sets)
    sets.check_cache(config.data, local_batch_size(config.data.images_per_batch, size) * (local_size or 1))
    warn_of_warmup(config, sets)
    sets.shortage(config.data.expressions_per_image)
    return sets


def check_evaluation(config: Config) -> None:
    """What evaluations during training need must be set before the first step, not at the first of them."""
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
