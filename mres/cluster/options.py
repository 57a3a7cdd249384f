"""The options of launch/submit.py, and the request that they make."""

import argparse
from pathlib import Path

from mres.cluster.request import (
    CLUSTERS,
    LOCAL_STARTS,
    Cluster,
    JobRequest,
    check_one_machine,
    parse_directives,
    parse_time_limit,
    tasks_on_a_node,
)
from mres.config import Config
from mres.errors import UserError
from mres.train.ranks import check_ranks

_SLURM_STRINGS = {
    "partition": "partition of the cluster",
    "account": "account to charge",
    "qos": "quality of service",
    "mem": "memory a node, such as 480G",
    "constraint": "features that the nodes must have",
    "exclude": "nodes to avoid",
}


def build_parser(description: str | None) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=description,
        epilog="example: python launch/submit.py --config configs/demo.yaml --nodes 4 --gpus-per-node 8 --cluster slurm"
        " --time 2-00:00:00 optim.lr=1e-4",
        allow_abbrev=False,
    )
    p.add_argument("--config", type=Path, required=True, help="the run's config, as launch/train.py takes it")
    p.add_argument("overrides", nargs="*", metavar="section.key=value", help="overrides of the config")
    p.add_argument(
        "--cluster", choices=CLUSTERS, default="slurm", help="local: processes on this machine; debug: this process"
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
    for name, text in _SLURM_STRINGS.items():
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
    named = {name: getattr(options, name) for name in _SLURM_STRINGS if getattr(options, name) is not None}
    request = JobRequest(
        cluster=options.cluster,
        nodes=options.nodes,
        gpus_per_node=options.gpus_per_node or 0,
        tasks_per_node=tasks_on_a_node(options.cluster, options.gpus_per_node, options.tasks_per_node),
        cpus_per_task=options.cpus_per_task or config.data.workers + 2,
        limit_min=limit_min,
        max_requeues=_max_requeues(options.cluster, options.max_requeues, limit_min),
        directives={**named, **parse_directives(options.sbatch)},
    )
    if request.cluster != "slurm":
        only = [*_SLURM_STRINGS, "cpus_per_task", "max_requeues", "sbatch"]
        given = [name for name in only if getattr(options, name) not in (None, [])]
        check_one_machine(request, [f"--{name.replace('_', '-')}" for name in given])
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


def _max_requeues(cluster: Cluster, asked: int | None, limit_min: int | None) -> int:
    """On this machine a job is started again only to rehearse a time limit."""
    if cluster == "slurm":
        return 100 if asked is None else asked
    return LOCAL_STARTS - 1 if limit_min is not None else 0
