"""What a machine must have for the ranks on it: GPUs that torch sees, shared memory, limits. Asked by the doctor, and by each
machine before its ranks meet the others (`preflight.py`)."""

from __future__ import annotations

import math
import os
import re
import resource
import shutil
from pathlib import Path

from mres.supervise.finding import Finding, gigabytes, ok, problem, warning
from mres.supervise.load import Load

SHM = Path("/dev/shm")
_LEAST_SHM, _LEAST_FILES, _LEAST_STACK = 2**30, 4096, 8 * 2**20
# By CUDA's major version, from its release notes; newer than a driver is, cuda-compat may still do.
_LEAST_DRIVER = {"11": "450.80.02", "12": "525.60.13", "13": "580.65.06"}


def check_gpus() -> list[Finding]:
    import torch

    version = f"torch {torch.__version__}"
    if not torch.cuda.is_available():
        return [check_gpus_are_seen()]
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    kinds = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    findings = [ok("GPUs", f"{kinds}; {version}, CUDA {torch.version.cuda}, driver {_driver_version()}, NCCL {nccl}")]
    if len(set(names)) > 1:
        findings.append(warning("GPUs", "they differ: the slowest sets the pace", "ranks on GPUs of one kind"))
    return findings + [finding for i in range(len(names)) for finding in _check_gpu_is_free(i)]


def check_gpus_are_seen() -> Finding:
    """Whether torch sees the GPUs that this machine has; a problem only where the launcher has given some out.

    Nothing is done on them.
    """
    import torch

    version, given, driver = f"torch {torch.__version__}", _gpus_given_out(), _driver_version()
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        if count >= given:
            return ok("GPUs", f"{version} sees {count}")
        found = f"CUDA_VISIBLE_DEVICES names {given}, and torch sees {count}"
        return problem("GPUs", found, "`nvidia-smi` and `dmesg` tell which is lost; leave this machine out (--exclude)")
    if driver is None and not given:
        return ok("GPUs", f"{version}; none here, training runs on the CPU over gloo")
    cuda, bad = torch.version.cuda, problem if given else warning
    if driver is None:  # as on SLURM's nodes with made-up ones
        return warning("GPUs", f"CUDA_VISIBLE_DEVICES names {given}, no driver is loaded: the CPU trains", "load it")
    least = _LEAST_DRIVER.get((cuda or "").split(".")[0])
    if least and _numbers(driver) < _numbers(least):
        found = f"driver {driver} is too old for CUDA {cuda} of {version}, which needs {least}"
        return bad("GPUs", found, "a newer driver, cuda-compat, or a torch for an older CUDA")
    remedy = f"CUDA_VISIBLE_DEVICES, the container's --gpus, or a torch with CUDA (this one: {cuda or 'a CPU build'})"
    return bad("GPUs", f"{version}; driver {driver} is loaded, and torch sees no GPU", remedy)


def _gpus_given_out() -> int:
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named.index("-1") if "-1" in named else len(named)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


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


def check_shared_memory(load: Load | None) -> Finding:
    """Batches travel from data workers to their rank in /dev/shm; where it is full, the kernel ends them (SIGBUS)."""
    if not SHM.is_dir():
        return problem("/dev/shm", "there is none", "mount a tmpfs there, or data.workers=0")
    free = shutil.disk_usage(SHM).free
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
