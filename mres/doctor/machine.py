"""The machine before a long run, beside what every start looks at (`supervise/machine.py`): packages, cores, leftovers, names."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

from mres.supervise.finding import Finding, ok, warning
from mres.supervise.load import Load
from mres.supervise.machine import SHM
from mres.supervise.threads import omp_threads

_ROOT = Path(__file__).resolve().parents[2]
# Names that torch (file_system sharing) and mosaicml-streaming give what they share between processes.
_TORCH_SHARED, _STREAMING_SHARED = re.compile(r"torch_(\d+)_"), re.compile(r"\d{6}_\w+")


def check_packages() -> Finding:
    """Installed versions against constraints.txt, which a run's numbers were tested with."""
    pins, check = _ROOT / "constraints.txt", _ROOT / "tools" / "check_environment.py"
    if not (pins.is_file() and check.is_file()):
        return ok("packages", "mres is installed without its repository: there are no pins to compare with")
    done = subprocess.run([sys.executable, str(check), str(pins)], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ok("packages", done.stdout.strip())
    return warning("packages", done.stderr.strip().removeprefix("error: "), "`make clean setup`")


def check_cores(load: Load | None) -> Finding:
    cores, there = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    seen = f"{cores} of {there} cores may be used"
    quota = _cgroup_cores()
    if quota is not None and quota < cores:
        found = f"{seen}, and the container's quota is {quota:g}"
        return warning("cores", found, "a larger quota, or train.threads and data.workers")
    if load is None:
        if cores == 1 < there:
            return warning("cores", seen, "`srun --cpus-per-task`, which does not inherit sbatch's")
        return ok("cores", seen)
    threads = load.threads or omp_threads(os.environ) or max(1, cores // load.ranks)
    busy = load.ranks * (load.workers + 1)
    asked = f"{load.ranks} rank(s) x ({load.workers} data workers + {threads} thread(s))"
    if busy > cores:
        return warning("cores", f"{seen}; {asked}", "fewer data.workers, or more cores a task (`--cpus-per-task`)")
    return ok("cores", f"{seen}; {asked}")


def _cgroup_cores() -> float | None:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        return int(quota) / int(period)
    except (OSError, ValueError):
        return None


def check_leftovers() -> list[Finding]:
    """What killed processes left in shared memory; a name that holds a process id is ours to judge."""
    entries = list(SHM.iterdir()) if SHM.is_dir() else []
    findings = []
    dead = [e for e in entries if (m := _TORCH_SHARED.match(e.name)) and not Path("/proc", m[1]).exists()]
    if dead:
        sample = f"{len(dead)} file(s) of processes that are gone, such as {dead[0]}"
        findings.append(warning("leftovers", sample, f"rm {SHM}/torch_<process id>_*"))
    foreign = [e for e in entries if _STREAMING_SHARED.fullmatch(e.name)]
    if foreign:
        sample = f"{len(foreign)} of mosaicml-streaming, such as {foreign[0]}; mres neither makes nor reads them"
        findings.append(warning("leftovers", sample, "remove them once nothing runs that uses streaming"))
    return findings or [ok("leftovers", "none of killed processes in /dev/shm")]


def check_names() -> Finding:
    """mres finds the interface by itself (`supervise/network.py`); torchrun on several machines needs their names."""
    host = socket.gethostname()
    try:
        address = str(socket.getaddrinfo(host, None)[0][4][0])
    except OSError as error:
        remedy = (
            f"nothing for mres; for torchrun on several machines an entry in /etc/hosts, or its --local-addr; {error}"
        )
        return warning("own name", f"'{host}' does not resolve", remedy)
    return ok("own name", f"'{host}' is {address}")
