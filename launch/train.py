"""Trains: `python launch/train.py --config configs/demo.yaml [section.key=value …]`, or under torchrun, deepspeed, srun."""

import os
import sys

from mres.errors import exit_on_user_error
from mres.io.output import outlive_readers
from mres.io.processes import end_process
from mres.supervise.launcher import stop_without_launcher
from mres.supervise.rendezvous import tell_refusal
from mres.supervise.slurm_env import task_exit


def main() -> int:
    from mres.train.run import main  # takes a moment, in which somebody may press Ctrl-C

    return task_exit(main(sys.argv[1:]), os.environ)


if __name__ == "__main__":
    outlive_readers()
    stop_without_launcher()
    end_process(exit_on_user_error(main, tell_refusal)())
