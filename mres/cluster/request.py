"""What a job asks of the cluster: the options of launch/submit.py, checked before anything is submitted."""

import argparse
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mres.cluster.container import Container, make_container
from mres.cluster.limits import SIGNAL_DELAY_S, parse_time_limit, signal_delay
from mres.cluster.restarts import MAX_RESTARTS
from mres.cluster.values import (
    SLURM_OPTIONS,
    check_setup,
    parse_directives,
    parse_env,
    parse_srun_args,
)
from mres.config import Config
from mres.errors import UserError
from mres.ranks import check_ranks

Cluster = Literal["slurm", "local", "debug"]
NO_LIMIT_MIN = 365 * 24 * 60  # what submitit reckons with where there is no limit but the partition's
_LOCAL_STARTS = 6  # how often submitit's controller starts a local job
_CODE = Path(__file__).parents[2]
_SLURM_ONLY = (
    *(
        "profile",
        *SLURM_OPTIONS,
        "cpus_per_task",
        "max_requeues",
        "max_restarts",
        "sbatch",
        "script",
        "no_snapshot",
        "snapshot_limit",
        "no_check_data",
        "srun_arg",
        "setup",
        "env",
        "python",
        "sweep",
        "array_parallelism",
    ),
    *("distribution", "cpu_bind", "container_image", "container_mounts"),
)


@dataclass(frozen=True)
class JobRequest:
    """Resources of one job: `nodes` x `tasks_per_node` tasks, one a GPU (or CPU tasks where `gpus_per_node` is 0).

    `limit_min` is None where there is no limit but the partition's; all tasks are warned `signal_delay_s` before it.
    `directives` are sbatch's own names and values (True: a flag without a value). `setup` are lines of shell that come
    first, `env` the tasks' variables; those of `private_env` are not written anywhere: sbatch is called with them.
    `step_options` are srun's, `container` is of the tasks alone, and so is their interpreter, `python`.
    """

    cluster: Cluster
    nodes: int
    gpus_per_node: int
    tasks_per_node: int
    cpus_per_task: int
    limit_min: int | None = None
    signal_delay_s: int = SIGNAL_DELAY_S
    max_requeues: int = 100
    max_restarts: int = MAX_RESTARTS
    directives: Mapping[str, str | bool] = field(default_factory=dict)
    setup: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    private_env: Mapping[str, str] = field(default_factory=dict, repr=False)
    distribution: str | None = None
    cpu_bind: str | None = None
    srun_args: tuple[str, ...] = ()
    container: Container | None = None
    python: str = sys.executable

    @property
    def world_size(self) -> int:
        return self.nodes * self.tasks_per_node

    @property
    def step_options(self) -> tuple[str, ...]:
        """What srun is told beyond the number of tasks: placement, container, and the user's own."""
        placement = (("distribution", self.distribution), ("cpu-bind", self.cpu_bind))
        return (
            *(f"--{name}={value}" for name, value in placement if value is not None),
            *(self.container.srun_options() if self.container else ()),
            *self.srun_args,
        )

    @property
    def controller_python(self) -> str:
        """The interpreter of the batch script, which runs outside of the tasks' container."""
        return sys.executable if self.container else self.python

    @property
    def task_command(self) -> str:
        """What a task's command begins with, for a shell that has PYTHONPATH set: the interpreter, in a container with the
        variables that its image may set."""
        if self.container is None:
            return shlex.quote(self.python)
        env = [*(shlex.quote(f"{name}={value}") for name, value in self.env.items()), '"PYTHONPATH=$PYTHONPATH"']
        return " ".join(["env", *env, shlex.quote(self.python)])


def make_request(options: argparse.Namespace, config: Config) -> JobRequest:
    """The resources that the command line (and the profile that was applied to it) asks for.

    Raises:
        UserError: for options that contradict each other or have no effect, and for a run that could not be requeued.
    """
    _check_words(options)
    limit_min = None if options.time is None else parse_time_limit(options.time)
    named = {name: getattr(options, name) for name in SLURM_OPTIONS if getattr(options, name) is not None}
    if options.cluster == "slurm":
        max_requeues = 100 if options.max_requeues is None else options.max_requeues
    else:  # on this machine a job is started again only to rehearse a time limit
        max_requeues = _LOCAL_STARTS - 1 if limit_min is not None else 0
        _check_one_machine(options)
    if options.array_parallelism and not options.sweep:
        raise UserError("--array-parallelism has no effect without --sweep; remove it")
    env, private_env = parse_env(options.env, os.environ)
    container = make_container(options.container_image, options.container_mounts, Path.cwd())
    has_gpus = bool(options.gpus_per_node)
    request = JobRequest(
        cluster=options.cluster,
        nodes=options.nodes or 1,
        gpus_per_node=options.gpus_per_node or 0,
        tasks_per_node=_tasks_on_a_node(options.cluster, options.gpus_per_node, options.tasks_per_node),
        cpus_per_task=options.cpus_per_task or config.data.workers + 2,
        limit_min=limit_min,
        signal_delay_s=signal_delay(
            options.signal_delay, limit_min, is_requeued=max_requeues > 0, run_dir=config.run_dir
        ),
        max_requeues=max_requeues,
        max_restarts=MAX_RESTARTS if options.max_restarts is None else options.max_restarts,
        directives={**named, **parse_directives(options.sbatch)},
        setup=check_setup(options.setup),
        env=env,
        private_env=private_env,
        # Ranks of one node are neighbours, and each task's cores and memory are near its GPU.
        distribution=options.distribution or ("block:block" if has_gpus else None),
        cpu_bind=options.cpu_bind or ("cores" if has_gpus else None),
        srun_args=parse_srun_args(options.srun_arg),
        container=container and container.seeing(config.run_dir.absolute(), _CODE),
        python=_interpreter(options.python, container),
    )
    _check_fits(request, config)
    return request


def _check_words(options: argparse.Namespace) -> None:
    """Refuses what would be several lines of the script, or none."""
    for name in (*SLURM_OPTIONS, "distribution", "cpu_bind", "python", "container_image"):
        value = getattr(options, name)
        if value is not None and (not value.strip() or not value.isprintable()):
            raise UserError(
                f"--{name.replace('_', '-')} {value!r}: expected one line of text; leave it out where it has none"
            )


def _tasks_on_a_node(cluster: Cluster, gpus_per_node: int | None, tasks_per_node: int | None) -> int:
    """One task a GPU, or as many as asked for on CPUs."""
    if gpus_per_node and tasks_per_node not in (None, gpus_per_node):
        raise UserError(
            f"--tasks-per-node {tasks_per_node} contradicts --gpus-per-node {gpus_per_node}: there is one task a GPU;"
            " leave --tasks-per-node out"
        )
    if cluster == "slurm" and not gpus_per_node and tasks_per_node is None:
        raise UserError("say what a node has: --gpus-per-node 8, or --tasks-per-node N for CPU nodes")
    return tasks_per_node or gpus_per_node or 1


def _interpreter(python: str | None, container: Container | None) -> str:
    """Of the tasks. Inside a container nothing can be looked up from here."""
    if container is not None:
        return python or "python3"
    if python is not None and "/" in python and not os.access(python, os.X_OK):
        raise UserError(
            f"--python {python}: there is no program of that name; give an interpreter that every node sees"
        )
    return python or sys.executable


def _check_one_machine(options: argparse.Namespace) -> None:
    """Refuses what has no effect where the job runs on this machine."""
    where = f"--cluster {options.cluster}"
    for name in _SLURM_ONLY:
        if getattr(options, name) not in (None, []):
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} has no effect with {where}; remove it, or use --cluster slurm")
    if (options.nodes or 1) > 1:
        raise UserError(f"--nodes {options.nodes} does not go with {where}, which runs on this machine; use --nodes 1")
    if options.cluster == "debug" and (tasks := options.tasks_per_node or options.gpus_per_node or 1) > 1:
        raise UserError(f"{where} runs one task in this process, not {tasks}; use --cluster local")
    if options.cluster == "debug" and options.time is not None:
        raise UserError(f"--time has no effect with {where}; remove it")
    if options.signal_delay is not None and options.time is None:
        raise UserError(f"--signal-delay has no effect with {where} without --time; remove it")


def _check_fits(request: JobRequest, config: Config) -> None:
    try:
        check_ranks(config, request.world_size, request.tasks_per_node)
    except UserError as error:
        ranks = f"{request.nodes} node(s) x {request.tasks_per_node} task(s) = {request.world_size} rank(s)"
        raise UserError(f"the job cannot run on {ranks}: {error}") from None
    if request.max_requeues and config.checkpoint.resume != "auto":
        remedy = "--max-requeues 0" if request.cluster == "slurm" else "no --time"
        raise UserError(
            f"checkpoint.resume={config.checkpoint.resume} would take a requeued job back to its start; use"
            f" checkpoint.resume=auto (and another run.name to start afresh), or {remedy}"
        )
