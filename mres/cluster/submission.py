"""From a checked request to a job: the script is written, printed or submitted."""

import os
import shlex
import sys
from pathlib import Path

from mres.cluster import jobs, nodes, refusals, slurm
from mres.cluster.request import JobRequest
from mres.cluster.script import MARK, Array, Program, log_of_rank, script_text
from mres.config import Config
from mres.errors import UserError, about_os
from mres.io.files import make_folder, open_regular, write_atomically


def print_plan(request: JobRequest, config: Config, program: Program, array: Array | None = None) -> int:
    """What would be submitted; nothing is written."""
    print(script_text(request, config, program, array), end="")
    _say(
        "this is a plan: nothing was written or submitted. sbatch takes it once its snapshot and the folder of its logs"
    )
    _say(f"are there, which --script FILE and submitting put into {config.run_dir.absolute()}")
    return 0


def write_script(request: JobRequest, config: Config, program: Program, file: Path, array: Array | None = None) -> int:
    """Writes the script into `file`, and makes what it needs.

    Raises:
        UserError: something else is there, or it cannot be written.
    """
    text = script_text(request, config, program, array)
    _make_folders(config, array)
    try:
        _check_own(file)
        write_atomically(file, text.encode())
    except OSError as error:
        raise UserError(f"--script: {about_os(error)}; name another file") from None
    print(f"submit: sbatch {shlex.quote(str(file))}")
    print(f"logs:   {log_of_rank(config.run_dir.absolute(), 'JOB', 'RANK')}")
    return 0


def submit(request: JobRequest, config: Config, program: Program, array: Array | None = None) -> int:
    """Submits the job, and says how to follow it; with `--sbatch wait`, returns its exit code once it has ended.

    Raises:
        UserError: sbatch refuses the job, or the run's folder does not take what is noted of it; nothing is in the queue.
    """
    text = script_text(request, config, program, array)
    folder = _make_folders(config, array)
    kept = folder / "submitted.sh"
    write_atomically(kept, text.encode())  # before it is submitted: the disk may be full
    sbatch = slurm.submit(text, {**slurm.outside_of_jobs(os.environ), **request.private_env})
    try:
        job = slurm.job_number(sbatch)
    except slurm.SlurmError as error:
        kept.unlink()
        raise refusals.refused(str(error)) from None
    runs = {f"{job}_{task.number}": task.run_dir for task in array.tasks} if array else {job: config.run_dir}
    try:
        kept.rename(folder / f"{job}.sh")
        for number, run_dir in runs.items():
            jobs.note(run_dir, jobs.Event(number, "submitted", step=jobs.newest_step(run_dir)))
    except OSError as error:
        slurm.cancel(job)
        raise UserError(f"{about_os(error)}; job {job} is taken out of the queue again") from None
    size = f"{request.nodes} node(s) x {request.tasks_per_node} task(s), world size {request.world_size}"
    print(f"job {job}: {f'{len(runs)} member(s), each ' if array else ''}{size}")
    if avoided := nodes.excluded(config.run_dir):
        print(f"avoids: {', '.join(avoided)}    (failed twice: {config.run_dir / nodes.EXCLUDED})")
    place = shlex.quote(str(config.run_dir))
    print(f"follow: python launch/submit.py logs -f {place}{'/MEMBER' if array else ''}    (--rank R)")
    print(f"state:  python launch/submit.py status {place}")
    print(f"cancel: python launch/submit.py cancel {place}    (saves first)", flush=True)
    _, said = sbatch.communicate()
    print(said, end="", file=sys.stderr)  # what the cluster tells everybody who submits
    return sbatch.returncode


def _make_folders(config: Config, array: Array | None) -> Path:
    """Those of the logs, of which the job's own is returned: SLURM opens them before anything of ours runs, and without them
    the job would end without a word."""
    members = [task.run_dir for task in array.tasks] if array else []
    folders = [run_dir / jobs.LOGS for run_dir in (config.run_dir, *members)]
    try:
        for folder in folders:
            make_folder(folder)
    except OSError as error:
        raise UserError(
            f"cannot write into the run's folder '{config.run_dir}': {error.strerror}; set run.dir"
        ) from None
    return folders[0]


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
