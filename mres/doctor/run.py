"""The command line of `tools/doctor.py`."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from mres.cli import Parser
from mres.config import Config, load_config
from mres.errors import UserError
from mres.supervise.finding import Finding, has_problem, problem, to_json


def main(argv: Sequence[str]) -> int:
    """Prints what was found; 1 where there is a problem.

    Raises:
        UserError: arguments that do not fit, a config that cannot be used, a folder without heartbeats.
    """
    arguments = _parser().parse_intermixed_args(argv)
    overrides = [word for word in arguments.words if "=" in word]
    folders = [word for word in arguments.words if "=" not in word]
    if len(folders) > 1 or (folders and (overrides or arguments.config)):
        raise UserError("name one run's folder alone, or --config and overrides")
    if overrides and not arguments.config:
        raise UserError(f"'{overrides[0]}' overrides a config; name it with --config")
    if folders and arguments.ranks is not None:
        raise UserError(f"--ranks={arguments.ranks} has no effect with a run's folder; remove it")
    if arguments.ranks is not None and arguments.ranks < 1:
        raise UserError(
            f"--ranks={arguments.ranks} is no number of processes; name how many run on this machine, from 1 on, or leave "
            "it out"
        )
    if folders:
        from mres.supervise.hang import diagnose

        findings = diagnose(Path(folders[0]))
    else:
        config = load_config(arguments.config, overrides) if arguments.config else None
        findings = examine(config, arguments.ranks)
    if arguments.json:
        print(json.dumps(to_json(findings), indent=1))
    else:
        print("\n".join(map(str, findings)))
    return 1 if has_problem(findings) else 0


def examine(config: Config | None, ranks: int | None) -> list[Finding]:
    """This machine, and what the config asks of it with `ranks` processes (default: one a GPU)."""
    import torch

    from mres.doctor import machine
    from mres.doctor.disk import check_run_dir
    from mres.supervise.load import load_of
    from mres.supervise.machine import check_gpus, check_limits, check_shared_memory

    gpus = torch.cuda.device_count()
    ranks = ranks or _ranks_of_launcher() or max(1, gpus)
    load = load_of(config, ranks) if config else None
    return [
        machine.check_packages(),
        *check_gpus(),
        machine.check_cores(load),
        check_shared_memory(load),
        *machine.check_leftovers(),
        *check_limits(load, gpus=gpus > 0),
        machine.check_names(),
        *check_run_dir(config.run_dir if config else Path("runs"), load),
        *(_check_data(config) if config else []),
    ]


def _ranks_of_launcher() -> int:
    given = os.environ.get("LOCAL_WORLD_SIZE", "0")
    if not given.isdigit():
        raise UserError(f"the environment variable LOCAL_WORLD_SIZE={given!r} is no number of processes; unset it")
    return int(given)


def _check_data(config: Config) -> list[Finding]:
    from mres.stream.sets import TrainingSets
    from mres.supervise.finding import ok

    try:
        sets = TrainingSets.open(config.data)
    except UserError as error:
        return [problem("data", str(error), "name sets that this machine reads")]
    return [ok("data", f"{sets.num_images:,} images with {sets.num_expressions:,} expressions")]


def _parser() -> argparse.ArgumentParser:
    p = Parser(
        prog="tools/doctor.py",
        description="Says what would break a long run on this machine; or, of a run's folder, which rank hangs or is dead.",
        epilog="examples: tools/doctor.py --config configs/demo.yaml   tools/doctor.py runs/demo",
        allow_abbrev=False,
    )
    p.add_argument(
        "words", nargs="*", metavar="RUN | section.key=value", help="a run's folder; or overrides of --config"
    )
    p.add_argument(
        "--config", type=Path, help="of the run that is planned: what it needs is compared with what is here"
    )
    p.add_argument(
        "--ranks", type=int, metavar="N", help="processes on this machine; default: LOCAL_WORLD_SIZE, or the GPUs"
    )
    p.add_argument("--json", action="store_true", help="one JSON object")
    return p
