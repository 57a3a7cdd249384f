"""What a job asks of the cluster, checked before anything is submitted."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mres.errors import UserError

Cluster = Literal["slurm", "local", "debug"]
CLUSTERS: tuple[Cluster, ...] = ("slurm", "local", "debug")
SIGNAL_DELAY_S = 120  # between SLURM's warning and the end: enough to finish the step and save
LOCAL_STARTS = 6  # how often submitit's controller starts a local job

# What submit.py sets itself; given a second time through --sbatch, one of the two would silently win.
_OWN_OPTIONS = {
    "nodes": "--nodes",
    "gpus-per-node": "--gpus-per-node",
    "ntasks-per-node": "--tasks-per-node",
    "partition": "--partition",
    "time": "--time",
    "account": "--account",
    "qos": "--qos",
    "cpus-per-task": "--cpus-per-task",
    "mem": "--mem",
    "constraint": "--constraint",
    "exclude": "--exclude",
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


def tasks_on_a_node(cluster: Cluster, gpus_per_node: int | None, tasks_per_node: int | None) -> int:
    """One task a GPU, or as many as asked for on CPUs.

    Raises:
        UserError: if the two contradict each other, or a SLURM job says neither.
    """
    if gpus_per_node and tasks_per_node not in (None, gpus_per_node):
        raise UserError(
            f"--tasks-per-node {tasks_per_node} contradicts --gpus-per-node {gpus_per_node}: there is one task a GPU;"
            " leave --tasks-per-node out"
        )
    if cluster == "slurm" and not gpus_per_node and tasks_per_node is None:
        raise UserError("say what a node has: --gpus-per-node 8, or --tasks-per-node N for CPU nodes")
    return tasks_per_node or gpus_per_node or 1


def check_one_machine(request: JobRequest, slurm_only: Sequence[str]) -> None:
    """Refuses what has no effect where the job runs on this machine.

    Args:
        slurm_only: the options given that only SLURM heeds, as typed.

    Raises:
        UserError: naming the option.
    """
    where = f"--cluster {request.cluster}"
    if slurm_only:
        raise UserError(f"{slurm_only[0]} has no effect with {where}; remove it, or use --cluster slurm")
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
    first, second, third = int(match[2]), int(match[3] or 0), int(match[4] or 0)
    if match[1] is not None:
        seconds = ((int(match[1]) * 24 + first) * 60 + second) * 60 + third
    elif match[4] is not None:
        seconds = (first * 60 + second) * 60 + third
    else:
        seconds = first * 60 + second
    minutes = -(-seconds // 60)
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
