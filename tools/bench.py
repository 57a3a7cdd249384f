"""Measures what mres claims, each figure beside its reference in the same run: `python tools/bench.py NAME [--json]`."""

import argparse
import json
import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from mres.cli import Parser
from mres.errors import UserError, exit_on_user_error


@dataclass(frozen=True)
class Bench:
    """`function` is module and function in `mres/bench`; `defaults` are the options that it has, with their defaults."""

    function: str
    what: str
    defaults: dict[str, int | str]


OPTIONS = {
    "size": "named model size",
    "images": "images a batch",
    "num_images": "images of the made set",
    "k": "expressions an image",
    "ranks": "ranks that share a batch",
    "batches": "batches that are read",
    "rounds": "measured rounds of each side",
    "threads": "CPU threads",
    "mb": "megabytes of tensors",
    "kills": "kills of runs, over all strategies",
    "each": "kills of each other command",
    "seed": "of the moments of the kills",
}
_TRAINING: dict[str, int | str] = {"size": "tiny", "images": 4, "k": 16, "rounds": 9, "threads": 1}
_DATA: dict[str, int | str] = {"size": "base", "images": 16, "k": 16}
BENCHES = {
    "data": Bench(
        "data.throughput",
        "samples a second against the usual pipeline, mosaicml-streaming and the decoder's limit",
        {**_DATA, "num_images": 512, "rounds": 5},
    ),
    "order": Bench(
        "order.lookup",
        "start and memory of the order of 1M images on 4096 ranks; how far it is from uniform",
        {"num_images": 1_000_000, "ranks": 4096, "rounds": 9},
    ),
    "memory": Bench(
        "memory.footprint",
        "memory of a data worker at 32M targets",
        {**_DATA, "num_images": 1_000_000, "batches": 2000},
    ),
    "grouping": Bench(
        "training.grouping", "expressions a second, K an image, against the same model fed pair by pair", _TRAINING
    ),
    "seam": Bench(
        "seam.seam",
        "the fsdp strategy against an FSDP2 loop written by hand, on the same ranks",
        {**_TRAINING, "rounds": 15, "ranks": 2},
    ),
    "loop": Bench(
        "training.loop", "the training loop against a bare PyTorch loop of the same model and batches", _TRAINING
    ),
    "peak": Bench(
        "peak.peak",
        "memory of each rank from a start without memory to the first step, against the model's",
        {"size": "smaller", "ranks": 4},
    ),
    "convert": Bench(
        "convert.convert",
        "conversions between forms of a checkpoint against cp, dcp_to_torch_save and zero_to_fp32; their peak memory",
        {"mb": 1000},
    ),
    "checkpoint": Bench(
        "checkpoint.checkpoint",
        "how long training waits for a save, saving and loading, beside cp of the same bytes",
        {"size": "middle", "ranks": 2, "rounds": 3, "threads": 1},
    ),
    "kills": Bench(
        "kills.kills",
        "runs and commands that are killed (kill -9) and repeated, against undisturbed ones, bit for bit",
        {"kills": 50, "each": 20, "seed": 1},
    ),
}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="bench.py", description=__doc__)
    benches = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, bench in BENCHES.items():
        one = benches.add_parser(name, help=bench.what, description=bench.what)
        one.add_argument("--json", action="store_true", help="machine-readable")
        for option, default in bench.defaults.items():
            flag = "--" + option.replace("_", "-")
            one.add_argument(flag, type=type(default), default=default, help=f"{OPTIONS[option]} (default: {default})")
    return parser


@exit_on_user_error
def main() -> int:
    arguments = _parser().parse_args()
    bench = BENCHES[arguments.name]
    for name, default in bench.defaults.items():
        value = getattr(arguments, name)
        if isinstance(default, int) and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value} must be at least 1")
    module, function = bench.function.split(".")
    found: dict[str, Any] = getattr(import_module(f"benchmarks.{module}"), function)(arguments)
    if arguments.json:
        print(json.dumps(found))
    else:
        _show(found)
    return 0


def _show(found: dict[str, Any]) -> None:
    """What was measured, section by section, then what is claimed of it."""
    print(found["what"])
    claims = found["claims"]
    sections = {name: value for name, value in found.items() if isinstance(value, dict) and name != "claims"}
    width = max(len(key) for section in [*sections.values(), claims] for key in section)
    for name, section in sections.items():
        print(name)
        for key, figure in section.items():
            print(f"  {key:{width}} {figure:12.4g}")
    print("claims")
    for key, claim in claims.items():
        print(f"  {key:{width}} {claim['figure']:12.4g}   {claim['target']}: {'met' if claim['met'] else 'MISSED'}")


if __name__ == "__main__":
    sys.exit(main())
