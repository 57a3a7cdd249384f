"""From a checked request to a job: the script is written, printed or submitted."""

import os
import shlex
import sys
from pathlib import Path

from mres.cluster import jobs, slurm
from mres.cluster.request import JobRequest
from mres.cluster.script import MARK, Program, log_of_rank, script_text
from mres.config import Config
from mres.errors import UserError
from mres.io.files import make_folder, open_regular, write_atomically


def print_plan(request: JobRequest, config: Config, program: Program) -> int:
    """What would be submitted; nothing is written."""
    print(script_text(request, config, program), end="")
    _say(
        "this is a plan: nothing was written or submitted. sbatch takes it once its snapshot and the folder of its logs"
    )
    _say(f"are there, which --script FILE and submitting put into {config.run_dir.absolute()}")
    return 0


def write_script(request: JobRequest, config: Config, program: Program, file: Path) -> int:
    """Writes the script into `file`, and makes what it needs.

    Raises:
        UserError: something else is there.
    """
    text = script_text(request, config, program)
    _check_own(file)
    _make_folder(config)
    write_atomically(file, text.encode())
    print(f"submit: sbatch {shlex.quote(str(file))}")
    print(f"logs:   {log_of_rank(config.run_dir.absolute(), 'JOB', 'RANK')}")
    return 0


def submit(request: JobRequest, config: Config, program: Program) -> int:
    """Submits the job, and says how to follow it; with `--sbatch wait`, returns its exit code once it has ended.

    Raises:
        UserError: sbatch refuses the job.
    """
    text = script_text(request, config, program)
    folder = _make_folder(config)
    sbatch = slurm.submit(text, {**os.environ, **request.private_env})
    job = slurm.job_number(sbatch)
    jobs.note(config.run_dir, jobs.Event(job, "submitted", step=jobs.newest_step(config.run_dir)))
    write_atomically(folder / f"{job}.sh", text.encode())
    print(f"job {job}: {request.nodes} node(s) x {request.tasks_per_node} task(s), world size {request.world_size}")
    logs = config.run_dir.absolute()
    print(f"follow: tail -F {shlex.quote(str(log_of_rank(logs, job, '0')))}    (rank R: {job}_R.log)")
    print(f"state:  squeue -j {job}")
    print(f"cancel: scancel {job}", flush=True)
    return sbatch.wait()


def _make_folder(config: Config) -> Path:
    """That of the logs: SLURM opens them before anything of ours runs, and without it the job would end without a word."""
    folder = config.run_dir / jobs.LOGS
    try:
        make_folder(folder)
    except OSError as error:
        raise UserError(
            f"cannot write into the run's folder '{config.run_dir}': {error.strerror}; set run.dir"
        ) from None
    return folder


def _check_own(file: Path) -> None:
    try:
        with open_regular(file) as there:
            if MARK.encode() in there.read(1 << 10):
                return
    except FileNotFoundError:
        return
    raise UserError(f"--script '{file}' is there and no job script of mres; name another file")


def _say(text: str) -> None:
    print(f"# {text}", file=sys.stderr)
