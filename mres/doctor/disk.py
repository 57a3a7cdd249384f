"""The file system that a run's folder is on: kind, room, whether what is committed there is whole, its clock."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from mres.io.files import free_bytes, write_atomically
from mres.io.folders import commit_folder
from mres.supervise.finding import Finding, gigabytes, ok, problem, warning
from mres.supervise.load import Load

_IN_MEMORY = ("tmpfs", "ramfs")
_NETWORK = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "fuse", "glusterfs", "9p", "virtiofs")
_LEAST_FREE = 10 * 2**30
_SLOW_S, _SKEW_S = 2.0, 2.0
_FIRST_SANE = 1_704_067_200  # 2024: a clock that was never set shows 1970


def check_run_dir(run_dir: Path, load: Load | None) -> list[Finding]:
    """Everything about the place that `run_dir` is in, or would be made in."""
    there = next(p for p in [run_dir.absolute(), *run_dir.absolute().parents] if p.is_dir())
    return [_check_kind(there), _check_room(there, load), *_check_committing(there)]


def _check_kind(there: Path) -> Finding:
    kind = file_system(there)
    if kind in _IN_MEMORY:
        return warning(
            "run folder", f"'{there}' is in memory ({kind})", "run.dir on a disk: a reboot loses checkpoints"
        )
    if kind.split(".")[0] in _NETWORK:
        return ok("run folder", f"'{there}' is on {kind}")
    return ok("run folder", f"'{there}' is on {kind}: of this machine alone; several need one that all of them see")


def file_system(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The kind of the file system that holds `path`, such as "ext4"; of two mounts at one place the later."""
    found = "an unknown file system"
    longest = -1
    for line in mounts.read_text(encoding="utf-8").splitlines():
        _, folder, kind, *_ = line.split()
        mount = Path(folder.encode().decode("unicode_escape"))  # a blank is \040
        if path.is_relative_to(mount) and len(mount.parts) >= longest:
            longest, found = len(mount.parts), kind
    return found


def _check_room(there: Path, load: Load | None) -> Finding:
    free = free_bytes(there)
    if load is None:
        found = f"{gigabytes(free)} free"
        return ok("room", found) if free >= _LEAST_FREE else warning("room", found, "make room, or another run.dir")
    found = f"{gigabytes(free)} free, {gigabytes(load.checkpoint_bytes)} needed for the checkpoints that are kept"
    if free < load.checkpoint_bytes:
        return problem("room", found, "make room, another run.dir, or a smaller checkpoint.keep")
    return ok("room", found)


def _check_committing(there: Path) -> list[Finding]:
    """Checkpoints are committed by fsync and rename; what they cost, and the clock of the file system, show too."""
    started = time.time()
    try:
        with tempfile.TemporaryDirectory(prefix=".mres-doctor-", dir=there) as name:
            part = Path(name, "part")
            part.mkdir()
            write_atomically(part / "file", b"whole")
            commit_folder(part, Path(name, "final"))
            made = (Path(name, "final", "file")).stat().st_mtime
    except OSError as error:
        return [problem("committing", f"'{there}' takes no files: {error}", "another run.dir, or its permissions")]
    seconds = time.time() - started
    found = f"fsync and rename work, in {seconds:.2f} s"
    slow = seconds > _SLOW_S
    findings = [warning("committing", found, "a faster file system for run.dir") if slow else ok("committing", found)]
    return [*findings, _check_clock(made - started, seconds)]


def _check_clock(ahead_s: float, seconds: float) -> Finding:
    if time.time() < _FIRST_SANE:
        return problem("clock", f"this machine is in {time.strftime('%Y')}", "set it (ntp, chrony)")
    if not -_SKEW_S < ahead_s < seconds + _SKEW_S:
        return warning("clock", f"the file system's differs by {ahead_s:.0f} s", "ntp or chrony on both machines")
    return ok("clock", "agrees with the file system's")
