"""What the command lines share: `--config`, overrides in any place, and the launchers' `--local_rank`."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from mres.config import Config, load_config
from mres.errors import UserError
from mres.supervise.slurm_env import is_slurm_task, task_environment


def config_parser(prog: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """A parser with what every command that takes a config has."""
    p = argparse.ArgumentParser(prog=prog, description=description, epilog=epilog, allow_abbrev=False)
    p.add_argument("--config", type=Path, required=True, help="YAML file; the ones that come with mres are in configs/")
    p.add_argument("overrides", nargs="*", metavar="section.key=value", help="overrides, the last one wins")
    p.add_argument("--local_rank", "--local-rank", type=int, help="appended by launchers; must agree with LOCAL_RANK")
    return p


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, Config]:
    """The arguments and the resolved config.

    Raises:
        UserError: an unknown option, a bad config, a local rank that contradicts the environment.
    """
    if "RANK" not in os.environ and is_slurm_task(os.environ):  # plain `srun python …`: no launcher has set it
        os.environ.update(task_environment(os.environ))
    arguments, rest = parser.parse_known_args(argv)
    # argparse leaves overrides that stand behind an option (such as the launchers' --local_rank) among the unknown.
    for word in rest:
        if word.startswith("-") and "=" not in word:
            raise UserError(f"unknown option '{word}' (command line); see {parser.prog} --help")
    config = load_config(arguments.config, [*arguments.overrides, *rest])
    if arguments.local_rank is not None:
        from_environment = os.environ.setdefault("LOCAL_RANK", str(arguments.local_rank))
        if from_environment != str(arguments.local_rank):
            raise UserError(
                f"--local_rank={arguments.local_rank} contradicts the environment's LOCAL_RANK={from_environment}; drop one"
            )
    return arguments, config
