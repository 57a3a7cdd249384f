"""Segments what expressions name in a photograph.

python tools/predict.py --checkpoint runs/demo --image photo.jpg --text "left wheel of the red car" --out overlay.png
"""

import argparse
import sys
from pathlib import Path

from mres.cli import Parser
from mres.errors import exit_on_user_error


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="predict.py", description="An image and expressions to an overlay and masks.")
    p.add_argument("--checkpoint", type=Path, required=True, help="a run's folder, a checkpoint or an exported folder")
    p.add_argument("--image", type=Path, required=True, help="JPEG, PNG or what else Pillow reads")
    p.add_argument("--text", action="append", required=True, help="an expression; may be given several times")
    p.add_argument(
        "--out", type=Path, default=Path("overlay.png"), help="overlay; masks go beside it as NAME-mask-1.png …"
    )
    p.add_argument("--threshold", type=float, help="probability from which a pixel is foreground; default: the run's")
    p.add_argument(
        "--kind", metavar="FILE.py:SPEC", help="a model of one's own: where its file lies now, if it has moved"
    )
    return p


@exit_on_user_error
def main() -> int:
    arguments = parser().parse_args()
    from mres.evaluate.predict import predict

    given = arguments.checkpoint, arguments.image, arguments.text, arguments.out, arguments.threshold, arguments.kind
    for line in predict(*given):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
