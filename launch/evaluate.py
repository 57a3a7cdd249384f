"""Evaluates a checkpoint: `python launch/evaluate.py --config C --checkpoint DIR [data.split=val] [section.key=value …]`.

Runs under plain python, torchrun, deepspeed or srun; the figures do not depend on the number of ranks.
"""

import sys

from mres.errors import exit_on_user_error
from mres.io.processes import end_process
from mres.supervise.launcher import stop_without_launcher
from mres.supervise.rendezvous import tell_refusal


def main() -> int:
    from mres.evaluate.run import main  # takes a moment, in which somebody may press Ctrl-C

    return main(sys.argv[1:])


if __name__ == "__main__":
    stop_without_launcher()
    end_process(exit_on_user_error(main, tell_refusal)())
