"""What the command lines share: near names for what is mistyped, `--config`, overrides in any place, `--local_rank`."""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from mres.config import Config, load_config
from mres.credentials import redacted
from mres.errors import UserError, near
from mres.supervise.lobby import NoPortError
from mres.supervise.meeting_point import receive_ranks
from mres.supervise.slurm_env import is_slurm_task, task_environment


class Parser(argparse.ArgumentParser):
    """One that says what was probably meant, and no credentials."""

    _words: Sequence[str] = ()

    def add_subparsers(self, **given: Any) -> Any:
        return super().add_subparsers(**{"parser_class": _Command, **given})

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        self._words = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def near_option(self, word: str) -> str:
        """What was probably meant by `word`, which is no option; "", if that is not known."""
        return near(word.partition("=")[0], list(self._option_string_actions), otherwise="")

    def error(self, message: str) -> NoReturn:
        """One that was mistyped may be why another is missing."""
        for word in self._words:
            name = word.partition("=")[0]
            if word.startswith("--") and not any(known.startswith(name) for known in self._option_string_actions):
                message += f"; unknown option '{name}'{(meant := self.near_option(word)) and f': {meant}'}"
        super().error(redacted(message))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            hint = near(str(value), [str(choice) for choice in action.choices])
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}; {hint}")


class _Command(Parser):
    """A tool's command refuses unknown options itself: the tool does not know which it has."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return found, rest


def config_parser(prog: str, description: str, epilog: str) -> Parser:
    """A parser with what every command that takes a config has."""
    p = Parser(prog=prog, description=description, epilog=epilog, allow_abbrev=False)
    p.add_argument("--config", type=Path, required=True, help="YAML file; the ones that come with mres are in configs/")
    p.add_argument("overrides", nargs="*", metavar="section.key=value", help="overrides, the last one wins")
    p.add_argument("--local_rank", "--local-rank", type=int, help="appended by launchers; must agree with LOCAL_RANK")
    return p


def _receive_ranks() -> None:
    """Rank 0 of several can be asked for from here on: who cannot come waits for it, and knows when it is gone."""
    if os.environ["RANK"] == "0" and os.environ["WORLD_SIZE"] != "1":
        with suppress(NoPortError):  # said when ranks are to meet
            receive_ranks(int(os.environ["WORLD_SIZE"]))


def parse(parser: Parser, argv: Sequence[str]) -> tuple[argparse.Namespace, Config]:
    """The arguments and the resolved config.

    Raises:
        UserError: an unknown option, a bad config, a local rank that contradicts the environment.
    """
    if "RANK" not in os.environ and is_slurm_task(os.environ):  # plain `srun python …`: no launcher has set it
        os.environ.update(task_environment(os.environ))
        _receive_ranks()
    arguments, rest = parser.parse_known_args(argv)
    # argparse leaves overrides that stand behind an option (such as the launchers' --local_rank) among the unknown.
    for word in rest:
        if word.startswith("-") and "=" not in word:
            meant = (hint := parser.near_option(word)) and f"{hint} "
            raise UserError(f"unknown option '{word}' (command line); {meant}see {parser.prog} --help")
    config = load_config(arguments.config, [*arguments.overrides, *rest])
    if arguments.local_rank is not None:
        from_environment = os.environ.setdefault("LOCAL_RANK", str(arguments.local_rank))
        if from_environment != str(arguments.local_rank):
            raise UserError(
                f"--local_rank={arguments.local_rank} contradicts the environment's LOCAL_RANK={from_environment}; drop one"
            )
    return arguments, config
