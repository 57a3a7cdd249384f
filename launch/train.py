"""Trains: `python launch/train.py --config configs/demo.yaml [section.key=value …]`, or under torchrun, deepspeed, srun."""

import sys

from mres.errors import exit_on_user_error
from mres.io.output import outlive_readers
from mres.io.processes import end_process
from mres.supervise.launcher import stop_without_launcher
from mres.supervise.rendezvous import tell_refusal
from mres.train.run import main

if __name__ == "__main__":
    outlive_readers()
    stop_without_launcher()
    end_process(exit_on_user_error(lambda: main(sys.argv[1:]), tell_refusal)())
