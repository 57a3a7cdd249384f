"""Weights for others: a folder with safetensors, config, tokenizer and model card; the model as a program on request.

python tools/export.py runs/demo exported/demo
python tools/export.py runs/demo exported/demo --program torch --program onnx
"""

import argparse
import sys
from pathlib import Path

from mres.cli import Parser
from mres.errors import exit_on_user_error


def parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    p = Parser(prog="export.py", description=__doc__, formatter_class=formatter)
    p.add_argument(
        "source", type=Path, metavar="SRC", help="a run, a checkpoint, an exported folder or a .safetensors file"
    )
    p.add_argument("out", type=Path, metavar="OUT", help="the folder to make; mres.load(OUT) reads it")
    p.add_argument(
        "--program",
        choices=("torch", "onnx"),
        action="append",
        default=[],
        help="add model.pt2 (torch.export) or model.onnx, held beside the model before anything is committed; may be "
        "given twice",
    )
    p.add_argument(
        "--results",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="results.json and results.jsonl of these weights for the model card; may be given several times; default: "
        "the run's own",
    )
    p.add_argument(
        "--weights", choices=("model", "ema"), default="model", help="ema: the moving average that a run has kept"
    )
    p.add_argument("--overwrite", action="store_true", help="replace what an earlier export or conversion made")
    p.add_argument(
        "--max-shard-size", metavar="SIZE", help="weights of more than this are several files (default: 5GB)"
    )
    p.add_argument(
        "--kind", metavar="FILE.py:SPEC", help="a model of one's own: where its file lies now, if it has moved"
    )
    return p


@exit_on_user_error
def main() -> int:
    arguments = parser().parse_args()
    from mres.convert.formats import FORMATS, parse_options
    from mres.export.folder import export
    from mres.export.programs import ParityError

    lines = export(
        arguments.source,
        arguments.out,
        programs=list(dict.fromkeys(arguments.program)),
        results=arguments.results,
        weights=arguments.weights,
        overwrite=arguments.overwrite,
        kind=arguments.kind,
        max_shard_bytes=parse_options(FORMATS["safetensors"], None, arguments.max_shard_size).max_shard_bytes,
    )
    try:
        for line in lines:
            print(line, flush=True)
    except ParityError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
