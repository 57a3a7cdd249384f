"""What each task of a job on this machine runs, through submitit: training as its rank, started again where its time is up."""

import os
import signal
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from mres.cluster.request import Cluster
from mres.errors import exit_on_user_error
from mres.supervise.launcher import is_lost, stop_without_launcher
from mres.supervise.rendezvous import tell_refusal
from mres.supervise.slurm_env import task_environment
from mres.supervise.stop_request import PREEMPTED_EXIT

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

TRAIN_ENTRY = "mres.train.run:main"


@dataclass(frozen=True)
class TrainJob:
    """A callable that submitit can start any number of times: all state lies in the run's folder.

    Stopping is agreed by the trainer: its own handler of USR2 and TERM sets a flag, all ranks save at the same step
    and `main` returns `PREEMPTED_EXIT`. Only then does rank 0 ask to be started again, so that no rank is killed in the
    middle of a save and nothing collective ever runs in a signal handler.

    `argv` is what launch/train.py takes; `entry` names the function "module:name" that gets it and returns an exit
    code; `local_port` is where local tasks meet; `max_requeues` of 0 means that a job whose time is up just ends.
    """

    cluster: Cluster
    argv: tuple[str, ...]
    max_requeues: int
    local_port: int | None = None
    entry: str = TRAIN_ENTRY

    def __call__(self) -> int:
        os.environ.update(task_environment(os.environ, self.local_port))
        if self.cluster == "local":
            # Ctrl-C in the terminal reaches submit.py alone, which passes it on once; see `mres.cluster.local`.
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            stop_without_launcher()
        entry = resolve_name(self.entry)
        code = exit_on_user_error(lambda: entry(list(self.argv)), tell_refusal)()
        if code == PREEMPTED_EXIT and self.max_requeues and not is_lost():  # else nobody would start it again
            self._start_again(int(os.environ["RANK"]))
        return code

    def checkpoint(self) -> "DelayedSubmission":
        """What submitit starts again when the signal comes before the trainer's handlers are in place: the job as it was.

        submitit calls it on rank 0 alone, in a signal handler: never anything collective here.
        """
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _start_again(self, rank: int) -> None:
        """Ends this task without a result, which submitit would take for the end of the job."""
        if rank:
            raise SystemExit(0)
        from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE

        print("everything is saved, starting again", flush=True)
        raise SystemExit(LOCAL_REQUEUE_RETURN_CODE)
