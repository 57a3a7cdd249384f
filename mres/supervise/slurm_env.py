"""From what SLURM and submitit tell a task to what torch.distributed reads: RANK, WORLD_SIZE, MASTER_ADDR …"""

import re
import socket
import subprocess
from collections.abc import Mapping

from mres.errors import UserError
from mres.supervise.lobby import MEETING
from mres.supervise.stop_request import PREEMPTED_EXIT

MASTER_PORTS = range(10_000, 30_000)  # above the services' ports, below the ephemeral ones (32768 on Linux)
_PORTS_TO_TRY = 8
# A name, any part of which may be numbers in brackets: "n4", "rack[1-2]n[04-07,9]-ib".
_HOSTS = re.compile(r"(?:[\w.-]|\[\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*])+(?=,|$)")


def task_environment(environ: Mapping[str, str], local_port: int | None = None) -> dict[str, str]:
    """The variables that torch.distributed reads, for the task that runs with `environ`; MASTER_ADDR and MASTER_PORT stay as set.

    Args:
        environ: of a task that srun started, of one of submitit's local tasks, or of neither (a world of one).
        local_port: where the local tasks meet; under SLURM the port follows from the numbers of job and step.

    Raises:
        UserError: naming the variable of SLURM that is missing or cannot be read.
    """
    if "SUBMITIT_LOCAL_GLOBALID" in environ:
        return _local_environment(environ, local_port)
    if is_slurm_task(environ):
        return _slurm_environment(environ)
    return _variables(rank=0, world=1, local_rank=0, local_world=1, host="127.0.0.1", port=local_port or free_port())


def is_slurm_task(environ: Mapping[str, str]) -> bool:
    """Whether srun started this process; a batch script and an salloc shell see the job's variables alone."""
    return "SLURM_STEP_ID" in environ and "SLURM_PROCID" in environ


def task_exit(code: int, environ: Mapping[str, str]) -> int:
    """The exit code of a task that would end with `code`: of those that srun started, rank 0 alone says that all were stopped.

    All are, together, and srun (--kill-on-bad-exit) would end rank 0 in the middle of its words for another rank's code.
    """
    return 0 if code == PREEMPTED_EXIT and is_slurm_task(environ) and environ.get("RANK", "0") != "0" else code


def free_port() -> int:
    """A port that nobody listens on now, on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def step_ports(job_id: int, step_id: int) -> list[int]:
    """Where a SLURM step's tasks meet: the first of these that rank 0 can have; nearby jobs and steps have others."""
    first = job_id + 1009 * step_id
    return [MASTER_PORTS[(first + 4001 * n) % len(MASTER_PORTS)] for n in range(_PORTS_TO_TRY)]


def ports_of_meeting(meeting: str, chosen: int) -> list[int]:
    """Those of `MRES_MEETING`; `chosen` (MASTER_PORT) alone, where it is not the first of them but the user's own."""
    job_id, step_id, _ = map(int, meeting.split("."))
    ports = step_ports(job_id, step_id)
    return ports if chosen == ports[0] else [chosen]


def _local_environment(environ: Mapping[str, str], port: int | None) -> dict[str, str]:
    assert port is not None, "the local tasks' port is chosen when they are submitted"
    rank, world = int(environ["SUBMITIT_LOCAL_GLOBALID"]), int(environ["SUBMITIT_LOCAL_NTASKS"])
    return _variables(rank=rank, world=world, local_rank=rank, local_world=world, host="127.0.0.1", port=port)


def _slurm_environment(environ: Mapping[str, str]) -> dict[str, str]:
    # The step's own count comes first: an interactive step of one task sees the whole job's SLURM_NTASKS.
    world = _integer(environ, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    node = _integer(environ, "SLURM_NODEID")
    counts = _tasks_per_node(_text(environ, "SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"))
    if node >= len(counts):
        raise UserError(f"SLURM_NODEID={node}, but SLURM_STEP_TASKS_PER_NODE names {len(counts)} nodes")
    job_id, step_id = _integer(environ, "SLURM_JOB_ID"), _integer(environ, "SLURM_STEP_ID")
    nodes = _text(environ, "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST")
    ranks = _variables(
        rank=_integer(environ, "SLURM_PROCID"),
        world=world,
        local_rank=_integer(environ, "SLURM_LOCALID"),
        local_world=counts[node],
        host=environ.get("MASTER_ADDR") or reachable(first_host(nodes)),
        port=environ.get("MASTER_PORT") or step_ports(job_id, step_id)[0],
    )
    return ranks | {MEETING: f"{job_id}.{step_id}.{environ.get('SLURM_RESTART_COUNT', '0')}"}


def _variables(
    *, rank: int, world: int, local_rank: int, local_world: int, host: str, port: int | str
) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(local_world),
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port),
    }


def _text(environ: Mapping[str, str], *names: str) -> str:
    for name in names:
        if environ.get(name):
            return environ[name]
    raise UserError(f"{names[-1]} is not set; inside a SLURM job start every task with srun")


def _integer(environ: Mapping[str, str], *names: str) -> int:
    text = _text(environ, *names)
    if not text.isdigit():
        raise UserError(f"{' or '.join(names)} is {text!r}, expected a whole number")
    return int(text)


def _tasks_per_node(text: str) -> list[int]:
    """SLURM's "8(x3),4" as [8, 8, 8, 4]."""
    counts: list[int] = []
    for group in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", group.strip())
        if match is None:
            raise UserError(f"SLURM_STEP_TASKS_PER_NODE is {text!r}, expected a form such as '8(x4)'")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def first_host(nodelist: str) -> str:
    """The first host of SLURM's compressed list: "n[04-07,9],login" gives n04."""
    first = _HOSTS.match(nodelist)
    if first is None:
        raise UserError(f"SLURM_JOB_NODELIST is {nodelist!r}, expected a list such as 'n[1-4]'")
    return re.sub(r"\[(\d+)[^]]*]", r"\1", first[0])


def reachable(host: str) -> str:
    """`host` itself where its name resolves, else the address that SLURM knows for it.

    Raises:
        UserError: if neither is to be had.
    """
    try:
        socket.getaddrinfo(host, None)
        return host
    except socket.gaierror:
        address = _node_address(host)
    if address is None:
        raise UserError(f"the first node's name {host!r} does not resolve here, and scontrol knows no address of it")
    return address


def _node_address(host: str) -> str | None:
    try:
        shown = subprocess.run(
            ["scontrol", "show", "node", host], capture_output=True, text=True, timeout=60, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"\bNodeAddr=(\S+)", shown)
    return match[1] if match else None
