"""The text of a job's batch script: what `--script` writes, `--dry-run` prints and submission gives to sbatch, to the byte."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mres.cluster.jobs import LOGS
from mres.cluster.request import JobRequest
from mres.config import Config
from mres.errors import UserError

MARK = "# A job script of mres"


@dataclass(frozen=True)
class Program:
    """What the job runs: launch/train.py of the code in `code`, with `argv`, in `folder`."""

    code: Path
    argv: tuple[str, ...]
    folder: Path


def script_text(request: JobRequest, config: Config, program: Program) -> str:
    """The script; all paths in it are absolute, so that it may lie and be submitted anywhere.

    Raises:
        UserError: a path has a line break in it, which no directive of sbatch can hold.
    """
    run_dir = config.run_dir.absolute()
    for path in (run_dir, program.folder, program.code):
        if len(str(path).splitlines()) != 1:
            raise UserError(f"{str(path)!r} has a line break, which no batch script can name; use another folder")
    return "\n".join(
        [
            "#!/bin/bash",
            *_head(request, config),
            *_directives(
                request, config.run.name, log_of_rank(Path(str(run_dir).replace("%", "%%")), "%j", "0"), program.folder
            ),
            "",
            *_set_up(request, program),
            "",
            *_controller(request, run_dir, program),
            "",
        ]
    )


def log_of_rank(run_dir: Path, job: str, rank: str) -> Path:
    """Where a rank's output goes; rank 0's has the controller's and srun's words as well."""
    return run_dir / LOGS / f"{job}_{rank}.log"


def _head(request: JobRequest, config: Config) -> list[str]:
    kind = "one a GPU" if request.gpus_per_node else "on CPUs"
    data = config.data
    return [
        f"{MARK}: submit it with sbatch, any number of times.",
        f"# World size {request.world_size} = {request.nodes} node(s) x {request.tasks_per_node} task(s), {kind};"
        f" a global batch has {data.images_per_batch} images x {data.expressions_per_image} expressions.",
    ]


def _directives(request: JobRequest, name: str, log: Path, folder: Path) -> list[str]:
    given: dict[str, str | bool] = {
        "job-name": name,
        "nodes": str(request.nodes),
        "ntasks-per-node": str(request.tasks_per_node),
        "cpus-per-task": str(request.cpus_per_task),
        **({"gpus-per-node": str(request.gpus_per_node)} if request.gpus_per_node else {}),
        **({} if request.limit_min is None else {"time": str(request.limit_min)}),
        **request.directives,
        "chdir": str(folder),
        "output": str(log),
        "open-mode": "append",
    }
    return [
        *_lines(given),
        f"# Every task is warned {request.signal_delay_s} s before the time limit (and by many clusters before preemption).",
        *_lines(
            {"signal": f"USR2@{request.signal_delay_s}", "requeue" if request.max_requeues else "no-requeue": True}
        ),
    ]


def _lines(directives: Mapping[str, str | bool]) -> Iterable[str]:
    for name, value in directives.items():
        yield f"#SBATCH --{name}" if value is True else f"#SBATCH --{name}={shlex.quote(str(value))}"


def _set_up(request: JobRequest, program: Program) -> list[str]:
    return [
        *(["# The user's own (--setup, --env)."] if request.setup or request.env else []),
        *request.setup,
        *(f"export {name}={shlex.quote(value)}" for name, value in request.env.items()),
        *(f"# {name} is taken from the environment of sbatch (--env {name})." for name in request.private_env),
        "# The code that runs.",
        f"export PYTHONPATH={shlex.quote(str(program.code))}${{PYTHONPATH:+:$PYTHONPATH}}",
        "# srun does not take --cpus-per-task over from sbatch (SLURM 22.05 and later).",
        f"export SRUN_CPUS_PER_TASK={request.cpus_per_task}",
    ]


def _controller(request: JobRequest, run_dir: Path, program: Program) -> list[str]:
    srun_args = (f" {shlex.quote(f'--srun-arg={option}')}" for option in request.step_options)
    train = program.code / "launch" / "train.py"
    # By its path: with -m, modules would be looked for in the working directory first, which may be a checkout.
    controller = program.code / "mres" / "cluster" / "batch.py"
    task = [*request.task_words(PYTHONPATH=str(program.code)), "-u", str(train), *program.argv]
    return [
        "# The controller starts the tasks behind -- with srun. When they have ended because the job is preempted or its time is",
        "# up, it has the job queued again; the tasks go on from the newest checkpoint. scancel saves and ends it for good.",
        f"exec {shlex.join([request.controller_python, '-u', str(controller)])} \\",
        f"    --run-dir {shlex.quote(str(run_dir))} \\",
        f"    --max-requeues {request.max_requeues} --signal-delay {request.signal_delay_s}{''.join(srun_args)} -- \\",
        f"    {shlex.join(task)}",
    ]
