"""The options of launch/submit.py. What a profile may set has no default here: what the command line leaves out is None."""

import argparse
from pathlib import Path

from mres.cli import Parser
from mres.cluster.limits import SIGNAL_DELAY_S
from mres.cluster.restarts import MAX_RESTARTS
from mres.cluster.values import SLURM_OPTIONS

SNAPSHOT_MIB = 64  # a checkout of mres has 5
CLUSTERS = ("slurm", "local", "debug")


def build_parser(description: str | None) -> Parser:
    p = Parser(
        description=description,
        epilog="example: python launch/submit.py --config configs/demo.yaml --nodes 4 --gpus-per-node 8 --cluster slurm"
        " --time 2-00:00:00 optim.lr=1e-4   of what was submitted: python launch/submit.py status|logs|cancel runs/demo",
        allow_abbrev=False,
    )
    p.add_argument("--config", type=Path, required=True, help="the run's config, as launch/train.py takes it")
    p.add_argument("overrides", nargs="*", metavar="section.key=value", help="overrides of the config")
    p.add_argument(
        "--cluster", choices=CLUSTERS, default="slurm", help="local: processes on this machine; debug: this process"
    )
    instead = p.add_mutually_exclusive_group()
    instead.add_argument(
        "--dry-run", action="store_true", help="print what would be submitted, write and submit nothing"
    )
    instead.add_argument(
        "--script", type=Path, metavar="FILE", help="write the script that sbatch takes, submit nothing"
    )
    p.add_argument("--nodes", type=_count, metavar="N", help="default 1")
    p.add_argument("--gpus-per-node", type=_count, metavar="N", help="one task is started a GPU")
    p.add_argument("--tasks-per-node", type=_count, metavar="N", help="for CPU nodes, instead of --gpus-per-node")
    p.add_argument(
        "--time", metavar="LIMIT", help="minutes, HH:MM:SS or D-HH:MM:SS; the job is requeued when it is over"
    )
    p.add_argument(
        "--signal-delay",
        type=_count,
        metavar="SECONDS",
        help="between the warning, at which training saves and ends, and the time limit; default: by what saving took in this"
        f" run, else {SIGNAL_DELAY_S}",
    )
    _add_slurm_options(p.add_argument_group("SLURM only"))
    _add_sweep_options(p.add_argument_group("SLURM only, several runs"))
    _add_container_options(p.add_argument_group("SLURM with the plugin pyxis only"))
    return p


def _add_slurm_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--profile",
        metavar="NAME|FILE",
        help="a cluster's options: configs/cluster/NAME.yaml, or a file; those given here win",
    )
    group.add_argument(
        "--no-snapshot",
        action="store_true",
        default=None,
        help="the job runs the code and the config that lie there when it starts, not copies of what lies there now",
    )
    group.add_argument(
        "--snapshot-limit", type=_count, metavar="MIB", help=f"how large the copies may be (default {SNAPSHOT_MIB})"
    )
    group.add_argument(
        "--no-check-data",
        action="store_true",
        default=None,
        help="data and weights are not looked at: only the nodes see them",
    )
    group.add_argument("--cpus-per-task", type=_count, metavar="N", help="default: the data workers and two more")
    group.add_argument("--max-requeues", type=_restarts, metavar="N", help="of a preempted job (default 100)")
    group.add_argument(
        "--max-restarts",
        type=_restarts,
        metavar="N",
        help=f"of training that fails, without a step gained (default {MAX_RESTARTS}; any number while it gains steps)",
    )
    for name, text in SLURM_OPTIONS.items():
        group.add_argument(f"--{name}", help=text)
    group.add_argument("--sbatch", action="append", default=[], metavar="KEY=VALUE", help="any other option of sbatch")
    group.add_argument(
        "--srun-arg",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other option of the srun that starts the tasks",
    )
    group.add_argument(
        "--setup",
        action="append",
        default=[],
        metavar="LINE",
        help="shell that the job runs first: 'module load cuda/12.4'",
    )
    group.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="a variable for the tasks; NAME alone: as it is here",
    )
    group.add_argument(
        "--python", metavar="PATH", help="the tasks' interpreter (default: this one; in a container python3)"
    )
    group.add_argument(
        "--distribution",
        metavar="HOW",
        help="of ranks over nodes and sockets, as srun's (default with GPUs: block:block)",
    )
    group.add_argument("--cpu-bind", metavar="HOW", help="of tasks to cores, as srun's (default with GPUs: cores)")


def _add_sweep_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--sweep",
        nargs="+",
        action="extend",
        default=[],
        metavar="section.key=V,V",
        help="one job array with a run for each combination of these values, in folders of their own; or a YAML file: a list"
        " of override sets. The same command again submits what has failed or is new",
    )
    group.add_argument("--array-parallelism", type=_count, metavar="N", help="so many of them at a time")


def _add_container_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--container-image", metavar="IMAGE", help="REGISTRY#IMAGE:TAG, or the path of a .sqsh file")
    group.add_argument(
        "--container-mounts", action="append", default=[], metavar="OUT:IN[,…]",
        help="folders that the tasks are to see; those of the run, of mres and this one are there without",
    )  # fmt: skip


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, found {text!r}")
    return int(text)


def _restarts(text: str) -> int:
    return 0 if text == "0" else _count(text)
