"""Measures what mres claims, each figure beside its reference in the same run: `python tools/bench.py NAME [--json]`."""

import argparse
import json
import sys
from importlib import import_module
from typing import Any

from mres.errors import UserError, exit_on_user_error

# name → (module and function, what it measures)
BENCHES = {
    "data": (
        "data.throughput",
        "samples a second against the usual pipeline, mosaicml-streaming and the decoder's limit",
    ),
    "order": ("order.lookup", "start and memory of the order of 1M images on 4096 ranks; how far it is from uniform"),
    "memory": ("memory.footprint", "memory of a data worker at 32M targets"),
    "grouping": ("training.grouping", "expressions a second, K an image, against the same model fed pair by pair"),
    "loop": ("training.loop", "the training loop against a bare PyTorch loop of the same model and batches"),
}


def _parser() -> argparse.ArgumentParser:
    names = "\n".join(f"  {name:10} {what}" for name, (_, what) in BENCHES.items())
    parser = argparse.ArgumentParser(
        prog="bench.py",
        description=f"{__doc__}\n\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=sorted(BENCHES))
    parser.add_argument("--json", action="store_true", help="machine-readable")
    parser.add_argument("--size", default="tiny", help="named model size (default: tiny); data: base")
    parser.add_argument("--images", type=int, default=4, help="images a batch (default: 4)")
    parser.add_argument("--k", type=int, default=16, help="expressions an image (default: 16)")
    parser.add_argument("--rounds", type=int, default=9, help="measured rounds of each side (default: 9)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    return parser


@exit_on_user_error
def main() -> int:
    arguments = _parser().parse_args()
    for name in ("images", "k", "rounds", "threads"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} {getattr(arguments, name)} must be at least 1")
    module, function = BENCHES[arguments.name][0].split(".")
    found: dict[str, Any] = getattr(import_module(f"mres.bench.{module}"), function)(arguments)
    if arguments.json:
        print(json.dumps(found))
        return 0
    print(found["what"])
    for name, value in found.items():
        if isinstance(value, dict):
            print(name)
            for key, figure in value.items():
                print(f"  {key:34} {figure:12.4g}" if isinstance(figure, float | int) else f"  {key:34} {figure:>12}")
    if "ratio" in found:
        print(f"  {'ratio':34} {found['ratio']:12.3f}   ({found['target']})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
