"""Copies of many files at once, all of them on the disk at the end."""

import os
import shutil
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from mres.io.files import fsync, named

# A disk, and a server even more so, commits many files in the time of one.
_AT_ONCE = 16


def copy_files(files: Mapping[str, Path], folder: Path, twin: Path | None = None) -> None:
    """Copies each file to its name below `folder`, a new one, with permissions; what has gone meanwhile is left out.

    Args:
        twin: a folder of such copies, of the same files; what is there under a name is linked, which takes neither time nor
            room, where the file system has links.

    Raises:
        OSError: naming the file that cannot be read or written.
    """
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda name: _copy(files[name], folder / name, twin and twin / name), files))
    for place, _, _ in os.walk(folder):
        fsync(Path(place))


def _copy(source: Path, target: Path, twin: Path | None) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if twin is not None:
        with suppress(OSError):
            target.hardlink_to(twin)
            return
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    with open(descriptor, "rb") as file, named(target), target.open("xb") as copy:
        # Also what its owner may not write to: the copy must be removable on any file system.
        os.fchmod(copy.fileno(), stat.S_IMODE(os.fstat(descriptor).st_mode) | stat.S_IWUSR)
        shutil.copyfileobj(file, copy)
        copy.flush()
        os.fsync(copy.fileno())
