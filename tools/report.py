"""Makes a run's report again, from its folder: `python tools/report.py runs/demo`."""

import argparse
import sys
from pathlib import Path

from mres.cli import Parser
from mres.errors import UserError, exit_on_user_error


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="report.py", description=__doc__)
    p.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="a run's folder, with the results of an evaluation")
    p.add_argument("--data", metavar="SET", help="the shard set that was evaluated, a folder or URL; default: data.val")
    p.add_argument("--picture", type=Path, metavar="FILE.png", help="also draw a contact sheet of typical images")
    p.add_argument(
        "--kind", metavar="FILE.py:SPEC", help="a model of one's own: where its file lies now, if it has moved"
    )
    return p


@exit_on_user_error
def main() -> int:
    arguments = parser().parse_args()
    if arguments.picture:
        from mres.evaluate.drawn_file import check_drawn

        check_drawn(arguments.picture, "--picture", endings=(".png",))
    data = arguments.data or _held_out(arguments.run_dir, arguments.kind)
    from mres.evaluate.report import write_report
    from mres.shards.reader import ShardSet

    print(write_report(arguments.run_dir, ShardSet(data)))
    if arguments.picture:
        from mres.evaluate.picture import draw_picture
        from mres.evaluate.results import name_on, read_results

        shards = ShardSet(data)
        name = name_on(arguments.run_dir, shards.fingerprint)
        draw_picture(read_results(arguments.run_dir, name)[1], shards, arguments.picture)
        print(arguments.picture)
    return 0


def _held_out(run_dir: Path, kind: str | None) -> str:
    """`data.val` of the run's own config."""
    from mres.config import load_config

    if not run_dir.is_dir():
        raise UserError(f"no run at '{run_dir}'; name the folder of a run, such as runs/demo")
    path = run_dir / "config.yaml"
    val = load_config(path, kind=kind, stored=True).data.val if path.is_file() else None
    if val is None:
        raise UserError(f"'{path}' names no data.val; name the shard set that was evaluated: --data SET")
    return val


if __name__ == "__main__":
    sys.exit(main())
