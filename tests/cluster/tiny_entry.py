"""Entries that stand in for `mres.train.run.main`: each gets the arguments and returns the exit code."""

import json
import os
import signal
import time
from pathlib import Path

from mres.errors import UserError
from mres.supervise.stop_request import PREEMPTED_EXIT, StopRequest

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def note_rank(argv: list[str]) -> int:
    """Leaves what torch.distributed would read in argv[0]."""
    found = {name: os.environ[name] for name in VARIABLES}
    Path(argv[0], f"rank{found['RANK']}.json").write_text(json.dumps(found))
    print(f"hello from rank {found['RANK']}")
    return 0


def save_and_stop(argv: list[str]) -> int:
    """The first time stops as the trainer does when it is preempted; the second time goes on to the end."""
    rank = os.environ["RANK"]
    done = Path(argv[0], f"saved{rank}")
    if done.exists():
        print(f"rank {rank} goes on")
        return 0
    stop = StopRequest()
    stop.install()
    os.kill(os.getpid(), signal.SIGUSR2)
    while not stop.requested:
        time.sleep(0.01)
    done.touch()
    return stop.exit_code


def always_preempted(argv: list[str]) -> int:
    return PREEMPTED_EXIT


def until_stopped(argv: list[str]) -> int:
    """Runs until Ctrl-C, then takes longer to save than submitit's own controller would wait."""
    stop = StopRequest()
    stop.install()
    print(f"pid {os.getpid()}\nready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    time.sleep(2)
    Path(argv[0], f"saved{os.environ['RANK']}").touch()
    print("saved", flush=True)
    return stop.exit_code


def rank_1_fails(argv: list[str]) -> int:
    """Rank 0 waits for ever, as in a collective whose partner is gone."""
    if os.environ["RANK"] == "1":
        return int(argv[0])
    time.sleep(600)
    return 0


def rank_1_raises(argv: list[str]) -> int:
    if os.environ["RANK"] == "1":
        raise RuntimeError("a rank's own trouble")
    return 0


def user_error(argv: list[str]) -> int:
    raise UserError("data.train: no such folder")
