"""The machine before a long run: packages, GPUs, cores, limits, shared memory, names."""

from __future__ import annotations

import math
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from mres.doctor.load import Load
from mres.supervise.finding import Finding, gigabytes, ok, problem, warning
from mres.supervise.threads import omp_threads

_ROOT = Path(__file__).resolve().parents[2]
_SHM = Path("/dev/shm")
_LEAST_SHM, _LEAST_FILES, _LEAST_STACK = 2**30, 4096, 8 * 2**20
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


def check_gpus() -> list[Finding]:
    import torch

    version = f"torch {torch.__version__}"
    driver = _driver_version()
    if not torch.cuda.is_available():
        if driver is None:
            return [ok("GPUs", f"{version}; none here, training runs on the CPU over gloo")]
        cuda = torch.version.cuda or "none: a CPU build"
        remedy = f"CUDA_VISIBLE_DEVICES, the container's --gpus, or a torch whose CUDA ({cuda}) the driver supports"
        return [problem("GPUs", f"{version}; driver {driver} is loaded, and torch sees no GPU", remedy)]
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    kinds = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    findings = [ok("GPUs", f"{kinds}; {version}, CUDA {torch.version.cuda}, driver {driver}, NCCL {nccl}")]
    if len(set(names)) > 1:
        findings.append(warning("GPUs", "they differ: the slowest sets the pace", "ranks on GPUs of one kind"))
    return findings + [finding for i in range(len(names)) for finding in _check_gpu_is_free(i)]


def _check_gpu_is_free(index: int) -> list[Finding]:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    if free > 0.95 * total - 2**30:
        return []
    found = f"{gigabytes(total - free)} of {gigabytes(total)} are in use"
    return [warning(f"GPU {index}", found, "`nvidia-smi` names the processes; end what is left over")]


def _driver_version() -> str | None:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(r"\d+\.\d+(\.\d+)?", text)
    return match[0] if match else "of an unknown version"


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


def check_shared_memory(load: Load | None) -> Finding:
    """Batches travel from data workers to their rank in /dev/shm; where it is full, the kernel ends them (SIGBUS)."""
    if not _SHM.is_dir():
        return problem("/dev/shm", "there is none", "mount a tmpfs there, or data.workers=0")
    free = shutil.disk_usage(_SHM).free
    needed = load.shared_memory_bytes if load else _LEAST_SHM
    remedy = "a container's `--shm-size`, fewer data.workers, or a smaller data.prefetch"
    if load is None:
        found = f"{gigabytes(free)} free"
        return ok("/dev/shm", found) if free >= needed else warning("/dev/shm", found, remedy)
    found = (
        f"{gigabytes(free)} free, up to {gigabytes(needed)} needed ({load.ranks} rank(s) x {load.workers} workers x "
        f"{load.prefetch} batches of {load.batch_bytes / 2**20:.1f} MiB)"
    )
    if free < needed:
        return problem("/dev/shm", found, remedy)
    return ok("/dev/shm", found) if free > 1.5 * needed else warning("/dev/shm", found, remedy)


def check_leftovers() -> list[Finding]:
    """What killed processes left in shared memory; a name that holds a process id is ours to judge."""
    entries = list(_SHM.iterdir()) if _SHM.is_dir() else []
    findings = []
    dead = [e for e in entries if (m := _TORCH_SHARED.match(e.name)) and not Path("/proc", m[1]).exists()]
    if dead:
        sample = f"{len(dead)} file(s) of processes that are gone, such as {dead[0]}"
        findings.append(warning("leftovers", sample, f"rm {_SHM}/torch_<process id>_*"))
    foreign = [e for e in entries if _STREAMING_SHARED.fullmatch(e.name)]
    if foreign:
        sample = f"{len(foreign)} of mosaicml-streaming, such as {foreign[0]}; mres neither makes nor reads them"
        findings.append(warning("leftovers", sample, "remove them once nothing runs that uses streaming"))
    return findings or [ok("leftovers", "none of killed processes in /dev/shm")]


def check_limits(load: Load | None, *, gpus: bool) -> list[Finding]:
    files, stack, locked = map(_limit, (resource.RLIMIT_NOFILE, resource.RLIMIT_STACK, resource.RLIMIT_MEMLOCK))
    allowed = "unlimited" if files == math.inf else f"{files} allowed"
    needed = max(_LEAST_FILES, load.open_files if load else 0)
    if files >= needed:
        findings = [ok("open files", f"{allowed}, {needed} are enough")]
    else:
        findings = [problem("open files", f"{allowed}, up to {needed} needed", f"`ulimit -n {max(65536, needed)}`")]
    if stack < _LEAST_STACK:
        findings.append(warning("stack", f"{stack // 1024} KiB", "`ulimit -s 8192`"))
    if gpus and locked != math.inf:
        found = f"{locked // 1024} KiB may be locked: InfiniBand needs more"
        findings.append(warning("locked memory", found, "`ulimit -l unlimited`, or LimitMEMLOCK=infinity of slurmd"))
    return findings


def _limit(resource_: int) -> float:
    soft, _ = resource.getrlimit(resource_)
    return math.inf if soft == resource.RLIM_INFINITY else soft


def check_names() -> Finding:
    """gloo listens at the address that the machine's own name has."""
    host = socket.gethostname()
    try:
        address = socket.getaddrinfo(host, None)[0][4][0]
    except OSError as error:
        remedy = f"an entry in /etc/hosts, or GLOO_SOCKET_IFNAME=<interface>; {error}"
        return warning("own name", f"'{host}' does not resolve", remedy)
    if str(address).startswith("127.") or address == "::1":
        return ok("own name", f"'{host}' is {address}: fine for one machine; on several, set GLOO_SOCKET_IFNAME")
    return ok("own name", f"'{host}' is {address}")
