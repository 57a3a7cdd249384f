"""`launch/submit.py status|logs|cancel RUN`: of a run's folder, or of a sweep's."""

from collections.abc import Sequence
from pathlib import Path

from mres.cli import Parser
from mres.cluster import jobs
from mres.cluster.sweep import is_sweep, member_names
from mres.errors import UserError, near_path
from mres.run_folder import METRICS

_RUNS = Path("runs")  # where a config's run.dir is, by default


def is_command(words: Sequence[str]) -> bool:
    """Whether a command line begins with one, or what was meant as one: options and overrides look different."""
    return bool(words) and not words[0].startswith("-") and "=" not in words[0]


def main(argv: Sequence[str]) -> int:
    """Raises: UserError: no such run, or what is asked for is not there."""
    options = build_parser().parse_args(argv)
    run: Path = options.run
    _check_is_run(run)
    folders = [run / name for name in member_names(run)] if is_sweep(run) else [run]
    if options.command == "status":
        from mres.cluster.status import look, run_text, sweep_text

        found = look(folders)
        print(sweep_text(found) if is_sweep(run) else run_text(found[0]))
    elif options.command == "cancel":
        from mres.cluster.cancel import cancel

        cancel(folders)
    else:
        from mres.cluster.follow import follow, show

        if is_sweep(run):
            raise UserError(f"'{run}' is a sweep's; name one of its members: {', '.join(str(f) for f in folders[:20])}")
        (follow if options.follow else show)(run, options.rank, options.lines)
    return 0


def build_parser() -> Parser:
    p = Parser(
        prog="launch/submit.py",
        description="Tells of a run that was submitted, shows its logs, or cancels it.",
        epilog="examples: launch/submit.py status runs/demo   launch/submit.py logs -f runs/demo   launch/submit.py cancel"
        " runs/sweep",
        allow_abbrev=False,
    )
    commands = p.add_subparsers(dest="command", required=True, metavar="status|logs|cancel")
    commands.add_parser("status", help="state, restarts, steps, time left, best figures; of a sweep, a table")
    logs = commands.add_parser("logs", help="what a rank prints")
    commands.add_parser("cancel", help="have it save and end for good, and wait for that")
    for command in commands.choices.values():
        command.add_argument("run", type=Path, metavar="RUN", help="the folder of a run, or of a sweep")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with what comes, until the run has ended")
    logs.add_argument("--rank", type=_number, default=0, metavar="R", help="default: 0")
    logs.add_argument("--lines", type=_number, default=100, metavar="N", help="of what is there already (default 100)")
    return p


def _number(text: str) -> int:
    from argparse import ArgumentTypeError

    if not text.isdecimal():
        raise ArgumentTypeError(f"expected a whole number from 0, found {text!r}")
    return int(text)


def _check_is_run(run: Path) -> None:
    known = (jobs.JOBS, METRICS, "config.yaml", "heartbeat", jobs.LOGS, "snapshot")
    if is_sweep(run) or any((run / name).exists() for name in known):
        return
    what = "is not the folder of a run or a sweep" if run.exists() else "does not exist"
    meant = near_path(run, _RUNS) if not run.exists() else ""
    raise UserError(f"'{run}' {what}{meant or '; name one, such as runs/demo (run.dir and run.name of its config)'}")
