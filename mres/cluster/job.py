"""What each task of a submitted job runs: training in the environment of its rank, requeued if it is preempted."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from mres.cluster.request import Cluster
from mres.cluster.values import SIGNAL_DELAY_S
from mres.errors import exit_on_user_error
from mres.supervise.launcher import is_lost, stop_without_launcher
from mres.supervise.slurm_env import task_environment
from mres.supervise.stop_request import PREEMPTED_EXIT

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

TRAIN_ENTRY = "mres.train.run:main"


@dataclass(frozen=True)
class TrainJob:
    """A callable that submitit can start any number of times: all state lives in the run's folder.

    Preemption is agreed by the trainer: its own handler of USR2 and TERM sets a flag, all ranks save at the same step
    and `main` returns `PREEMPTED_EXIT`. Only then does rank 0 requeue, so that no rank is killed in the middle of a
    save and nothing collective ever runs in a signal handler.

    `argv` is what launch/train.py takes; `entry` names the function "module:name" that gets it and returns an exit
    code; `local_port` is where local tasks meet; `max_requeues` of 0 means that a preempted job just ends.
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
        code = exit_on_user_error(lambda: entry(list(self.argv)))()
        rank = int(os.environ["RANK"])
        if code == PREEMPTED_EXIT:
            self._requeue(rank)
        if code and self.cluster == "slurm":
            # srun --kill-on-bad-exit ends the other tasks. All are preempted together, and rank 0 alone says so: another
            # rank's exit code would end it in the middle of its words.
            raise SystemExit(0 if code == PREEMPTED_EXIT and rank else code)
        return code

    def checkpoint(self) -> "DelayedSubmission":
        """What submitit requeues when the signal comes before the trainer's handlers are in place: the job as it was.

        submitit calls it on rank 0 alone, in a signal handler: never anything collective here.
        """
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _requeue(self, rank: int) -> None:
        """Ends this task; rank 0 has the job started again, unless that has happened too often."""
        restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        if is_lost():  # nobody would start it again, or could stop what is started
            return
        if restarts >= self.max_requeues:
            if rank == 0 and self.max_requeues:
                print(f"{_reason(os.environ)}; requeued {restarts} times, not again. {_REMEDY}", flush=True)
            return
        if rank == 0:
            print(f"{_reason(os.environ)}: everything is saved, requeueing", flush=True)
            if self.cluster == "local":
                from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE

                raise SystemExit(LOCAL_REQUEUE_RETURN_CODE)
            requeue_slurm_job(os.environ["SLURM_JOB_ID"])
        # SystemExit leaves no result behind, which submitit would take for the end of the job.
        raise SystemExit(0)


_REMEDY = "The same command goes on from the newest checkpoint."


def requeue_slurm_job(job_id: str) -> None:
    """Asks SLURM to start the running job again.

    Raises:
        SystemExit: with `PREEMPTED_EXIT` and SLURM's own words, if it refuses.
    """
    command = ["scontrol", "requeue", job_id]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        words = (getattr(error, "stderr", None) or str(error)).strip()
        print(f"error: '{' '.join(command)}' failed: {words}. {_REMEDY}", flush=True)
        raise SystemExit(PREEMPTED_EXIT) from None


def _reason(environ: Mapping[str, str]) -> str:
    """Why the job was asked to stop; submitit's own guess is wrong for limits under ten minutes."""
    end = environ.get("SLURM_JOB_END_TIME", "")
    if end.isdigit() and int(end) - time.time() <= SIGNAL_DELAY_S + 60:  # SLURM may signal up to a minute early
        return "the time limit is near"
    return "preempted"
