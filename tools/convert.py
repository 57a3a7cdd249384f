"""Writes a checkpoint in another format, in little memory and without a GPU; killed, the same command goes on.

python tools/convert.py runs/demo export --to safetensors
python tools/convert.py export runs/new/checkpoints --to dcp
python tools/convert.py runs/demo for_deepspeed --to zero3 --world-size 8
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from mres.cli import Parser
from mres.errors import exit_on_user_error


def parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    p = Parser(prog="convert.py", description=__doc__, formatter_class=formatter)
    p.add_argument(
        "source",
        type=Path,
        metavar="SRC",
        help="a run, a checkpoint, an exported folder, a .safetensors file (or the index of several), a checkpoint folder "
        "of DeepSpeed, or a DCP folder with tensors named model.…",
    )
    p.add_argument("out", type=Path, metavar="DST", help="the folder to make")
    p.add_argument(
        "--to",
        required=True,
        metavar="FORMAT",
        help="safetensors: weights and config, DST/model.safetensors; dcp: DST/step-…, as in a run's checkpoints/ folder; "
        "zero1, zero2, zero3: a checkpoint folder of DeepSpeed",
    )
    p.add_argument("--world-size", type=int, metavar="N", help="ranks that read what zero1 … zero3 make (default: 1)")
    p.add_argument(
        "--weights", choices=("model", "ema"), default="model", help="ema: the moving average that a run has kept"
    )
    p.add_argument("--overwrite", action="store_true", help="replace what an earlier conversion made")
    p.add_argument(
        "--max-shard-size", metavar="SIZE", help="safetensors of more than this are several files (default: 5GB)"
    )
    return p


@exit_on_user_error
def main() -> int:
    arguments = parser().parse_args()
    from mres.convert.convert import convert
    from mres.convert.formats import parse_format, parse_options

    to = parse_format(arguments.to)
    options = parse_options(to, arguments.world_size, arguments.max_shard_size)
    overwrite, weights = arguments.overwrite, arguments.weights
    print(convert(arguments.source, arguments.out, to.name, overwrite=overwrite, weights=weights, **asdict(options)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
