"""Exports a run's weights to safetensors, or makes a checkpoint that a run can start from.

python tools/convert.py runs/demo export --to safetensors
python tools/convert.py export runs/new/checkpoints --to dcp
"""

import argparse
import sys
from pathlib import Path

from mres.errors import exit_on_user_error


def parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(prog="convert.py", description=__doc__, formatter_class=formatter)
    p.add_argument(
        "source", type=Path, metavar="SRC", help="a run, a checkpoint, an exported folder or a .safetensors file"
    )
    p.add_argument("out", type=Path, metavar="DST", help="the folder to make")
    p.add_argument(
        "--to",
        required=True,
        metavar="FORM",
        help="safetensors: DST/model.safetensors with its config; dcp: DST/step-…, as in a run's checkpoints/ folder",
    )
    p.add_argument(
        "--weights", choices=("model", "ema"), default="model", help="ema: the moving average that a run has kept"
    )
    p.add_argument("--overwrite", action="store_true", help="replace what an earlier conversion made")
    return p


@exit_on_user_error
def main() -> int:
    arguments = parser().parse_args()
    from mres.checkpoint.convert import convert, parse_form

    form = parse_form(arguments.to)
    overwrite, weights = arguments.overwrite, arguments.weights
    print(convert(arguments.source, arguments.out, form, overwrite=overwrite, weights=weights))
    return 0


if __name__ == "__main__":
    sys.exit(main())
