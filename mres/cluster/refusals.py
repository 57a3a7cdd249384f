"""What a cluster would refuse, or keep waiting for ever, in terms of launch/submit.py's options."""

import re
from dataclasses import dataclass

from mres.cluster import slurm
from mres.cluster.request import JobRequest
from mres.errors import UserError, near

# What SLURM says of a job that it does not take, the options that may be meant, and what shows what there is.
_REMEDIES = (
    ("account", "--account, --partition", "sacctmgr show associations user=$USER format=account,partition,qos"),
    ("partition", "--partition", "sinfo -o %P"),
    ("qos", "--qos, --time", "sacctmgr show qos format=name,maxwall,maxtres"),
    ("array", "--sweep, --array-parallelism", "scontrol show config | grep MaxArraySize"),
    ("feature", "--constraint", "sinfo -o '%P %f'"),
    ("node name", "--exclude, --sbatch nodelist=…", "sinfo -N"),
    ("reservation", "--sbatch reservation=…", "scontrol show reservation"),
    ("time limit", "--time", "sinfo -o '%P %l'"),
    (
        "node configuration",
        "--nodes, --gpus-per-node, --tasks-per-node, --cpus-per-task, --mem",
        "sinfo -o '%P %D nodes of %c CPUs, %m MB, %G'",
    ),
    ("generic resource", "--gpus-per-node", "sinfo -o '%P %G'"),
    ("memory", "--mem", "sinfo -o '%P %m MB'"),
    ("unrecognized option", "--sbatch", "sbatch --help"),
    ("unable to contact", "", "scontrol ping"),
)


@dataclass(frozen=True)
class Partition:
    """`max_min` is its longest time limit in minutes; `nodes` how many it has, or lets a job have."""

    name: str
    is_default: bool
    nodes: int
    max_min: float | None


def refused(words: str) -> UserError:
    """What sbatch has said, and what helps."""
    for phrase, options, shows in _REMEDIES:
        if phrase in words.lower():
            change = f"change {options}; " if options else ""
            return UserError(f"sbatch refused the job: {words}; {change}`{shows}` tells what there is")
    return UserError(f"sbatch refused the job: {words or 'it gives no reason'}")


def check_partition(request: JobRequest) -> None:
    """Refuses what SLURM would take and never start.

    Raises:
        UserError: no such partition; more nodes than it has, a longer time than it allows.
    """
    try:
        known = read_partitions(slurm.ask("scontrol", "show", "partition", "--oneliner"))
    except slurm.SlurmError:  # sbatch will say what is wrong
        return
    asked = str(request.directives.get("partition", "")).split(",")
    chosen = [known[name] for name in asked if name in known] or [p for p in known.values() if p.is_default]
    for name in filter(None, asked):
        if name not in known:
            raise UserError(f"--partition {name}: the cluster has none of that name; {near(name, [*known])}")
    if not chosen:
        raise UserError(f"the cluster has no default partition; give --partition, one of {', '.join(known)}")
    largest = max(chosen, key=lambda partition: partition.nodes)
    if request.nodes > largest.nodes:
        raise UserError(
            f"--nodes {request.nodes}: partition {largest.name} gives a job {largest.nodes} at most; ask for fewer, or use "
            "another --partition"
        )
    longest = max(chosen, key=lambda partition: partition.max_min or float("inf"))
    if request.limit_min is not None and longest.max_min is not None and request.limit_min > longest.max_min:
        raise UserError(
            f"--time: {request.limit_min} minutes are more than the {longest.max_min:g} that partition {longest.name} allows; give "
            "less (a job whose time is up is queued again and goes on)"
        )


def read_partitions(shown: str) -> dict[str, Partition]:
    """From what `scontrol show partition --oneliner` prints."""
    found = {}
    for line in shown.splitlines():
        values = dict(re.findall(r"(\w+)=(\S*)", line))
        if "PartitionName" not in values:
            continue
        most = values.get("MaxNodes", "")
        nodes = int(values.get("TotalNodes", "0"))
        limit_s = slurm.seconds(values.get("MaxTime", ""))
        found[values["PartitionName"]] = Partition(
            values["PartitionName"],
            values.get("Default") == "YES",
            min(nodes, int(most)) if most.isdigit() else nodes,
            None if limit_s is None else limit_s / 60,
        )
    return found
