"""Submission to SLURM through submitit: the batch text, and sbatch."""

import shutil
from pathlib import Path

from submitit import Job, SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import _make_sbatch_string

from mres.cluster.job import TrainJob
from mres.cluster.request import NO_LIMIT_MIN, JobRequest
from mres.cluster.values import SIGNAL_DELAY_S
from mres.errors import UserError


class _BatchWriter(SlurmExecutor):
    """submitit's executor, made to write its batch text also where there is no SLURM, and also without a time limit."""

    @classmethod
    def affinity(cls) -> int:
        return 1

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        limit = self.parameters["time"]
        parameters = {**self.parameters, "time": None if limit == NO_LIMIT_MIN else limit}
        text: str = _make_sbatch_string(command=command, folder=self.folder, **parameters)
        return text


def batch_text(request: JobRequest, name: str, folder: Path) -> str:
    """The script that sbatch gets; `%j` in its paths stands for the job's id."""
    writer = _writer(request, name, folder)
    text: str = writer._make_submission_file_text(writer._submitit_command_str, uid="")
    return text


def submit(job: TrainJob, request: JobRequest, name: str, folder: Path) -> "Job[int]":
    """Submits `job`; what it needs to start lies in `folder`, which every node must see.

    Raises:
        UserError: if this machine has no sbatch, or sbatch refuses the job.
    """
    if shutil.which("sbatch") is None:
        raise UserError(
            "there is no sbatch on PATH: submit from a login node of the cluster, print the batch text with --dry-run,"
            " or train on this machine with --cluster local"
        )
    try:
        return _writer(request, name, folder).submit(job)
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(f"sbatch refused the job: {error}") from None


def _writer(request: JobRequest, name: str, folder: Path) -> _BatchWriter:
    cpus = request.cpus_per_task
    writer = _BatchWriter(folder, max_num_timeout=request.max_requeues)
    writer.update_parameters(
        job_name=name,
        nodes=request.nodes,
        ntasks_per_node=request.tasks_per_node,
        cpus_per_task=cpus,
        signal_delay_s=SIGNAL_DELAY_S,
        stderr_to_stdout=True,
        wckey=None,  # submitit's own default is refused where keys are tracked
        additional_parameters={"requeue" if request.max_requeues else "no-requeue": True, **request.directives},
        # srun does not take --cpus-per-task over from sbatch (SLURM 22.05 and later): one core a task without these.
        setup=[f"export SRUN_CPUS_PER_TASK={cpus}"],
        srun_args=[f"--cpus-per-task={cpus}", "--kill-on-bad-exit=1", "--open-mode=append"],
        time=request.limit_min or NO_LIMIT_MIN,
        **({"gpus_per_node": request.gpus_per_node} if request.gpus_per_node else {}),
    )
    return writer
