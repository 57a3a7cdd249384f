"""Nodes as SLURM knows them: where they are, and that a job gives them up or avoids them."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

from mres.cluster import slurm


@dataclass(frozen=True)
class Node:
    """A node's name, the name that it calls itself, and where its slurmd listens."""

    name: str
    host: str
    address: str
    port: int
    state: str


def show(nodes: str) -> list[Node]:
    """Those of a list as SLURM writes it: "n[1-4]". Raises: SlurmError."""
    shown = slurm.ask("scontrol", "show", "node", "--oneliner", nodes)
    config = slurm.ask("scontrol", "show", "config")
    port = re.search(r"^SlurmdPort\s*=\s*(\d+)", config, flags=re.MULTILINE)

    def node(line: str) -> Node:
        values: dict[str, str] = dict(re.findall(r"(?:^|\s)(\w+)=(\S*)", line))
        own_port = values.get("Port") or (port[1] if port else "6818")
        name = values["NodeName"]
        host = values.get("NodeHostName", name)
        return Node(name, host, values.get("NodeAddr", host), int(own_port), values.get("State", ""))

    return [node(line) for line in shown.splitlines() if "NodeName=" in line]


def exclude(job: str, nodes: Sequence[str]) -> None:
    """Keeps a job that waits away from nodes, beside those that it avoids already. Raises: SlurmError."""
    before = slurm.show_job(job).excluded
    slurm.ask("scontrol", "update", f"JobId={job}", f"ExcNodeList={','.join([*([before] if before else []), *nodes])}")


def give_up(job: str, lost: Sequence[str], nodes: Sequence[str], patience_s: float) -> None:
    """Takes lost nodes out of a running job: SLURM would wait for them before it starts the job again, until it takes them for
    down (SlurmdTimeout). Queued again, the job asks for as many as before.

    Returns when SLURM has seen that they do not answer, and does not choose them again.

    Raises:
        SlurmError: it does not let a job give up nodes, or not the one that the batch script runs on.
    """
    with tempfile.TemporaryDirectory() as folder:  # it writes scripts into the one that it is called in
        kept = ",".join(name for name in nodes if name not in lost)
        slurm.ask("scontrol", "update", f"JobId={job}", f"NodeList={kept}", folder=folder)
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if all(re.search(r"\*|NOT_RESPONDING|DOWN|DRAIN|FAIL", node.state) for node in show(",".join(lost))):
            return
        time.sleep(1)
