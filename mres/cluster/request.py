"""What a job asks of the cluster: the options of launch/submit.py, checked before anything is submitted."""

import argparse
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mres.cli import Parser
from mres.config import Config
from mres.errors import UserError
from mres.ranks import check_ranks

Cluster = Literal["slurm", "local", "debug"]
_CLUSTERS: tuple[Cluster, ...] = ("slurm", "local", "debug")
SIGNAL_DELAY_S = 120  # between SLURM's warning and the end: enough to finish the step and save
NO_LIMIT_MIN = 365 * 24 * 60  # what submitit reckons with where there is no limit but the partition's
_LOCAL_STARTS = 6  # how often submitit's controller starts a local job

_SLURM_OPTIONS = {
    "partition": "partition of the cluster",
    "account": "account to charge",
    "qos": "quality of service",
    "mem": "memory a node, such as 480G",
    "constraint": "features that the nodes must have",
    "exclude": "nodes to avoid",
}
# What submit.py sets itself; given a second time through --sbatch, one of the two would silently win.
_OWN_OPTIONS = {
    **{name: f"--{name}" for name in (*_SLURM_OPTIONS, "nodes", "gpus-per-node", "time", "cpus-per-task")},
    "ntasks-per-node": "--tasks-per-node",
    "job-name": "the override run.name=...",
    "output": "the override run.dir=...",
    "error": "the override run.dir=...",
}
_FIXED = ("signal", "requeue", "no-requeue", "open-mode", "array", "ntasks", "gpus", "chdir")


@dataclass(frozen=True)
class JobRequest:
    """Resources of one job: `nodes` x `tasks_per_node` tasks, one a GPU (or CPU tasks where `gpus_per_node` is 0).

    `limit_min` is None where there is no limit but the partition's; `directives` are sbatch's own names and values
    (True: a flag without a value).
    """

    cluster: Cluster
    nodes: int
    gpus_per_node: int
    tasks_per_node: int
    cpus_per_task: int
    limit_min: int | None = None
    max_requeues: int = 100
    directives: Mapping[str, str | bool] = field(default_factory=dict)

    @property
    def world_size(self) -> int:
        return self.nodes * self.tasks_per_node


def build_parser(description: str | None) -> argparse.ArgumentParser:
    p = Parser(
        description=description,
        epilog="example: python launch/submit.py --config configs/demo.yaml --nodes 4 --gpus-per-node 8 --cluster slurm"
        " --time 2-00:00:00 optim.lr=1e-4",
        allow_abbrev=False,
    )
    p.add_argument("--config", type=Path, required=True, help="the run's config, as launch/train.py takes it")
    p.add_argument("overrides", nargs="*", metavar="section.key=value", help="overrides of the config")
    p.add_argument(
        "--cluster", choices=_CLUSTERS, default="slurm", help="local: processes on this machine; debug: this process"
    )
    p.add_argument("--dry-run", action="store_true", help="print what would be submitted, submit nothing")
    p.add_argument("--nodes", type=_count, default=1, metavar="N")
    p.add_argument("--gpus-per-node", type=_count, metavar="N", help="one task is started a GPU")
    p.add_argument("--tasks-per-node", type=_count, metavar="N", help="for CPU nodes, instead of --gpus-per-node")
    p.add_argument(
        "--time", metavar="LIMIT", help="minutes, HH:MM:SS or D-HH:MM:SS; the job is requeued when it is over"
    )
    slurm = p.add_argument_group("SLURM only")
    slurm.add_argument("--cpus-per-task", type=_count, metavar="N", help="default: the data workers and two more")
    slurm.add_argument("--max-requeues", type=_restarts, metavar="N", help="of a preempted job (default 100)")
    for name, text in _SLURM_OPTIONS.items():
        slurm.add_argument(f"--{name}", help=text)
    slurm.add_argument("--sbatch", action="append", default=[], metavar="KEY=VALUE", help="any other option of sbatch")
    return p


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, found {text!r}")
    return int(text)


def _restarts(text: str) -> int:
    return 0 if text == "0" else _count(text)


def make_request(options: argparse.Namespace, config: Config) -> JobRequest:
    """The resources that the command line asks for.

    Raises:
        UserError: for options that contradict each other or have no effect, and for a run that could not be requeued.
    """
    limit_min = None if options.time is None else parse_time_limit(options.time)
    named = {name: getattr(options, name) for name in _SLURM_OPTIONS if getattr(options, name) is not None}
    if options.cluster == "slurm":
        max_requeues = 100 if options.max_requeues is None else options.max_requeues
    else:  # on this machine a job is started again only to rehearse a time limit
        max_requeues = _LOCAL_STARTS - 1 if limit_min is not None else 0
    request = JobRequest(
        cluster=options.cluster,
        nodes=options.nodes,
        gpus_per_node=options.gpus_per_node or 0,
        tasks_per_node=_tasks_on_a_node(options.cluster, options.gpus_per_node, options.tasks_per_node),
        cpus_per_task=options.cpus_per_task or config.data.workers + 2,
        limit_min=limit_min,
        max_requeues=max_requeues,
        directives={**named, **parse_directives(options.sbatch)},
    )
    if request.cluster != "slurm":
        _check_one_machine(request, options)
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
    return request


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


def _check_one_machine(request: JobRequest, options: argparse.Namespace) -> None:
    """Refuses what has no effect where the job runs on this machine."""
    where = f"--cluster {request.cluster}"
    for name in (*_SLURM_OPTIONS, "cpus_per_task", "max_requeues", "sbatch"):
        if getattr(options, name) not in (None, []):
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} has no effect with {where}; remove it, or use --cluster slurm")
    if request.nodes > 1:
        raise UserError(f"--nodes {request.nodes} does not go with {where}, which runs on this machine; use --nodes 1")
    if request.cluster == "debug" and request.tasks_per_node > 1:
        raise UserError(f"{where} runs one task in this process, not {request.tasks_per_node}; use --cluster local")
    if request.cluster == "debug" and request.limit_min is not None:
        raise UserError(f"--time has no effect with {where}; remove it")


def parse_time_limit(text: str) -> int:
    """Minutes of one of SLURM's forms: minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS; seconds round up.

    Raises:
        UserError: for any other form, or too little time to get anything done.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if match is None:
        raise UserError(f"--time {text!r}: expected minutes (90), HH:MM:SS (12:00:00) or D-HH:MM:SS (2-00:00:00)")
    days, first, second, third = (int(part or 0) for part in match.groups())
    if match[1] is None and match[4] is None:
        first, second, third = 0, first, second  # minutes, not hours, come first
    minutes = math.ceil((((days * 24 + first) * 60 + second) * 60 + third) / 60)
    if minutes * 60 <= 2 * SIGNAL_DELAY_S:
        raise UserError(
            f"--time {text!r} is too short: a job is asked to save and end {SIGNAL_DELAY_S} seconds before its limit;"
            f" give at least {2 * SIGNAL_DELAY_S // 60 + 1} minutes"
        )
    return minutes


def parse_directives(options: Sequence[str]) -> dict[str, str | bool]:
    """sbatch options given as `key=value` or, for a flag, `key`.

    Raises:
        UserError: for a key that is given twice or that submit.py itself sets, naming the option to use instead.
    """
    directives: dict[str, str | bool] = {}
    for option in options:
        name, equals, value = option.partition("=")
        key = name.lstrip("-").replace("_", "-")
        if not re.fullmatch(r"[a-z][a-z0-9-]*", key) or (equals and not value):
            raise UserError(f"--sbatch {option!r}: expected key=value or key, such as reservation=gpu or exclusive")
        if key in _OWN_OPTIONS:
            raise UserError(f"--sbatch {option}: use {_OWN_OPTIONS[key]} instead")
        if key in _FIXED:
            raise UserError(f"--sbatch {option}: submit.py sets {key} itself, since requeueing depends on it")
        if key in directives:
            raise UserError(f"--sbatch {key} is given twice")
        directives[key] = value if equals else True
    return directives
