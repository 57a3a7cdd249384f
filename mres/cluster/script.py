"""The text of a job's batch script: what `--script` writes, `--dry-run` prints and submission gives to sbatch, to the byte."""

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mres.cluster.jobs import LOGS
from mres.cluster.nodes import excluded
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


@dataclass(frozen=True)
class Task:
    """What one number of a job array runs, and the folder of its run."""

    number: int
    run_dir: Path
    program: Program


@dataclass(frozen=True)
class Array:
    """A job array; `parallelism` is how many of its tasks run at a time, None for no limit."""

    tasks: tuple[Task, ...]
    parallelism: int | None = None

    def __str__(self) -> str:
        """As sbatch takes it."""
        numbers = ",".join(str(task.number) for task in self.tasks)
        return numbers if self.parallelism is None else f"{numbers}%{self.parallelism}"


def script_text(request: JobRequest, config: Config, program: Program, array: Array | None = None) -> str:
    """The script; all paths in it are absolute, so that it may lie and be submitted anywhere.

    Of an array, `config` and `program` are the sweep's, and each task has those of its own run.

    Raises:
        UserError: a path has a line break in it, which no directive of sbatch can hold.
    """
    run_dir = config.run_dir.absolute()
    runs = [task.run_dir for task in array.tasks] if array else []
    if request.container:
        request = replace(request, container=request.container.seeing(*(run.absolute() for run in runs)))
    for path in (run_dir, program.folder, program.code, *runs):
        if len(str(path).splitlines()) != 1:
            raise UserError(f"{str(path)!r} has a line break, which no batch script can name; use another folder")
    log = log_of_rank(Path(str(run_dir).replace("%", "%%")), "%A_%a" if array else "%j", "0")
    return "\n".join(
        [
            "#!/bin/bash",
            *_head(request, config),
            *_directives(request, config.run.name, run_dir, log, program.folder, array),
            "",
            *_set_up(request),
            "",
            *(_task_of_array(array) if array else _task(run_dir, program)),
            "",
            *_controller(request),
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


def _exclude(request: JobRequest, run_dir: Path) -> dict[str, str]:
    """What the user excludes, and the nodes that failed twice in this run."""
    names = (str(request.directives.get("exclude", "")), *excluded(run_dir))
    return {"exclude": ",".join(filter(None, names))} if any(names) else {}


def _directives(
    request: JobRequest, name: str, run_dir: Path, log: Path, folder: Path, array: Array | None
) -> list[str]:
    given: dict[str, str | bool] = {
        "job-name": name,
        "nodes": str(request.nodes),
        "ntasks-per-node": str(request.tasks_per_node),
        "cpus-per-task": str(request.cpus_per_task),
        **({"gpus-per-node": str(request.gpus_per_node)} if request.gpus_per_node else {}),
        **({} if request.limit_min is None else {"time": str(request.limit_min)}),
        **request.directives,
        **_exclude(request, run_dir),
        "chdir": str(folder),
        **({"array": str(array)} if array else {}),
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


def _set_up(request: JobRequest) -> list[str]:
    return [
        *_own_set_up(request),
        "# srun does not take --cpus-per-task over from sbatch (SLURM 22.05 and later).",
        f"export SRUN_CPUS_PER_TASK={request.cpus_per_task}",
    ]


def _own_set_up(request: JobRequest) -> Iterator[str]:
    """The user's lines, the first of which to fail ends the job, and variables; credentials are not written here."""
    if request.setup:
        yield "# --setup: once, on the first node; what it exports reaches every task."
    for line in request.setup:
        failed = shlex.quote(f"mres: error: the job has not started, since this line of --setup failed: {line}")
        yield line
        yield f"[ $? = 0 ] || {{ echo {failed} >&2; exit 2; }}"
    if request.env or request.private_env:
        yield "# --env: for every task."
    for name, value in request.env.items():
        yield f"export {name}={shlex.quote(value)}"
    for name in request.private_env:
        yield f': "${{{name}?of --env {name} has no value; export it where sbatch is called}}"'


def _task(run_dir: Path, program: Program) -> list[str]:
    return [
        "# The run's folder, the code that runs, and what launch/train.py gets.",
        f"run_dir={shlex.quote(str(run_dir))}",
        f"code={shlex.quote(str(program.code))}",
        f"arguments=({shlex.join(program.argv)})",
    ]


def _task_of_array(array: Array) -> list[str]:
    return [
        "# Which run each number of the array is.",
        "case $SLURM_ARRAY_TASK_ID in",
        *(
            line
            for task in array.tasks
            for line in (
                f"{task.number})",
                *(f"    {line}" for line in _task(task.run_dir.absolute(), task.program)[1:]),
                "    ;;",
            )
        ),
        "esac",
        "# From here on, into the run's own log.",
        f'exec >>"$run_dir/{LOGS}/${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}_0.log" 2>&1',
    ]


def _controller(request: JobRequest) -> list[str]:
    srun_args = (f" {shlex.quote(f'--srun-arg={option}')}" for option in request.step_options)
    return [
        'export PYTHONPATH="$code${PYTHONPATH:+:$PYTHONPATH}"',
        "# The controller starts the tasks behind -- with srun. When they have ended because the job is preempted or its time is",
        "# up, it has the job queued again; the tasks go on from the newest checkpoint. scancel saves and ends it for good.",
        "# By its path: with -m, modules would be looked for in the working directory first, which may be a checkout.",
        f'exec {shlex.quote(request.controller_python)} -u "$code/mres/cluster/batch.py" --run-dir "$run_dir" \\',
        f"    --max-requeues {request.max_requeues} --max-restarts {request.max_restarts}"
        f" --signal-delay {request.signal_delay_s}{''.join(srun_args)} -- \\",
        f'    {request.task_command} -u "$code/launch/train.py" "${{arguments[@]}}"',
    ]
