"""The command line of training: everything that can be refused is refused here, before torch loads.

From a config to the optimizer's step, each calling the next:
    main               mres/train/run.py: parses and checks the config, holds the run's folder
    train              mres/train/session.py: joins the ranks
    _Session.run       mres/train/session.py: where the run goes on, model, strategy, weights
    _Session._fit      mres/train/session.py: the trainer; going back where training diverged
    Trainer.fit        mres/train/trainer.py: the loop
    step               mres/parallel/native.py (or zero/strategy.py): clips, moves the weights
"""

import sys
from collections.abc import Sequence
from contextlib import nullcontext

from mres.cli import config_parser, parse
from mres.config import Config
from mres.run_folder import held
from mres.stream.order import Order
from mres.stream.sets import TrainingSets
from mres.supervise.rank_env import local_size, read_rank_env, world_size
from mres.train.checks import check_settings, open_sets


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
    check_settings(config, world_size(), local_size())
    sets = open_sets(config, world_size(), local_size())
    if arguments.dry_run:
        if shortage := sets.shortage(config.data.expressions_per_image):  # a run says it in its log
            print(f"warning: {shortage}", file=sys.stderr)
        print(config.to_yaml(), end="")
        print(plan(config, sets))
        return 0
    with held(config.run_dir) if is_main else nullcontext():
        from mres.train.session import train

        return train(config, sets)


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
