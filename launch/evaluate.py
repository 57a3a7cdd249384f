"""Evaluates a checkpoint: `python launch/evaluate.py --config C --checkpoint DIR [data.split=val] [section.key=value …]`.

Runs under plain python, torchrun, deepspeed or srun; the figures do not depend on the number of ranks.
"""

import sys

from mres.errors import exit_on_user_error
from mres.evaluate.run import main
from mres.io.processes import end_process

if __name__ == "__main__":
    end_process(exit_on_user_error(lambda: main(sys.argv[1:]))())
