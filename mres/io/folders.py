"""Folders that take their place whole: what stands there is exchanged for another in one step, and removed then.

    <final>.replaced/{.replaced-by-mres, new/…, old/…}

The mark says that the rest is of a replacement, whoever was killed at it. Where the system knows no exchange (NFS), `final` is
not there for a moment; `settle` makes up for a kill just then.
"""

import ctypes
import errno
import os
from contextlib import suppress
from itertools import count
from pathlib import Path

from mres.io.files import fsync, remove_folder

REPLACED_MARK = ".replaced-by-mres"
_NEW, _OLD = "new", "old"
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of renameat2(2)
_UNKNOWN = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}


def commit_folder(part: Path, final: Path) -> None:
    """Renames `part`, whose content is on the disk, to `final`; what stands there is removed once it is replaced.

    Raises:
        OSError: there is no such `part`, or it cannot be renamed; what stood there stands there still.
    """
    if not part.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(part))
    beside = settle(final)
    if os.path.lexists(final):
        _replace(part, final, beside)
    else:
        part.rename(final)
    fsync(final.parent)
    remove_folder(beside, last=REPLACED_MARK)


def _replace(part: Path, final: Path, beside: Path) -> None:
    beside.mkdir()
    try:
        (beside / REPLACED_MARK).touch()
        part.rename(beside / _NEW)
        _exchange(beside / _NEW, final, beside / _OLD)
    except OSError:
        with suppress(OSError):
            (beside / _NEW).rename(part)
        remove_folder(beside, last=REPLACED_MARK)
        raise


def settle(final: Path) -> Path:
    """Ends what killed processes were replacing `final` with, removes what they left; returns a free name beside it.

    What is of others stays.
    """
    for number in count(1):
        beside = final.with_name(f"{final.name}.replaced" + (f"-{number}" if number > 1 else ""))
        if not beside.is_symlink() and (beside / REPLACED_MARK).is_file():
            _restore(beside, final)
            remove_folder(beside, last=REPLACED_MARK)
        with suppress(OSError):
            beside.rmdir()  # an empty one: the kill came before or after the mark
        if not os.path.lexists(beside):
            return beside
    raise AssertionError("unreachable")


def _restore(beside: Path, final: Path) -> None:
    for name in (_NEW, _OLD):
        if (beside / _OLD).exists() and not os.path.lexists(final):
            with suppress(OSError):
                (beside / name).rename(final)


def _exchange(new: Path, final: Path, old: Path) -> None:
    """`final` becomes what `new` is, and what it was lies beside `new`."""
    if _exchanged(new, final):
        return
    final.rename(old)
    try:
        new.rename(final)
    except OSError:
        old.rename(final)
        raise


def _exchanged(one: Path, other: Path) -> bool:
    """Whether the system could exchange them. Raises: OSError: it can, and failed."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    if function(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNKNOWN:
        return False
    raise OSError(number, os.strerror(number), str(other))
