"""Makes a global batch of a run again, with the loss of each expression and a contact sheet.

python tools/replay.py runs/demo --step 1240
"""

import argparse
import sys
from pathlib import Path

from mres.cli import Parser
from mres.errors import UserError, exit_on_user_error


def parser() -> argparse.ArgumentParser:
    p = Parser(
        prog="replay.py",
        description="A global batch of a run, made again: ids, texts, losses of its expressions, and a contact sheet.",
    )
    p.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    which = p.add_mutually_exclusive_group(required=True)
    which.add_argument("--step", type=int, help="step of the run, from 1, such as one in its bad_steps.jsonl")
    which.add_argument("--batch", type=int, help="number of the batch in the stream, from 0, as bad_steps.jsonl has it")
    p.add_argument(
        "--checkpoint", type=Path, help="weights for the losses; default: the run's newest of before the step"
    )
    p.add_argument("--out", type=Path, help="contact sheet; default: RUN/replay-step-N.png or RUN/replay-batch-N.png")
    p.add_argument(
        "--kind", metavar="FILE.py:SPEC", help="a model of one's own: where its file lies now, if it has moved"
    )
    return p


@exit_on_user_error
def main() -> int:
    arguments = parser().parse_args()
    step, batch = arguments.step, arguments.batch
    if (step is not None and step < 1) or (batch is not None and batch < 0):
        raise UserError("--step counts from 1, --batch from 0")
    if not (arguments.run / "config.yaml").is_file():
        raise UserError(f"no run in '{arguments.run}' (no config.yaml); name the run's folder")
    from mres.doctor.replay import replay

    name = f"replay-step-{step}.png" if batch is None else f"replay-batch-{batch}.png"
    out = arguments.out or arguments.run / name
    given, kind = arguments.checkpoint, arguments.kind
    for line in replay(arguments.run, step=step, batch=batch, checkpoint=given, out=out, kind=kind):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
