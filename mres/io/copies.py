"""Copies of many files at once, all of them on the disk at the end."""

import os
import shutil
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mres.io.files import fsync, named

# A disk, and a server even more so, commits many files in the time of one.
_AT_ONCE = 16


def copy_files(files: Mapping[str, Path], folder: Path) -> None:
    """Copies each file to its name below `folder`, a new one, with permissions; what has gone meanwhile is left out.

    Raises:
        OSError: naming the file that cannot be read or written.
    """
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda name: _copy(files[name], folder / name), files))
    for place, _, _ in os.walk(folder):
        fsync(Path(place))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
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
