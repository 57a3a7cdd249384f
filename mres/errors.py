"""What a user is told when something that they gave is wrong."""

import difflib
import errno
import functools
import io
import itertools
import os
import reprlib
import sys
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path

from mres.credentials import redacted

# Launchers end all ranks once one has failed: the others wait, or rank 0 may be ended before it has spoken.
_HEAD_START_S = 3.0


_MAKE_ROOM = "make room there, or name a place on another disk"
_NAME_ANOTHER = "name a place that can be written to"
# What is no fault of the program: a disk that is full or fails, and a place that is not to be written to.
_DISK_REMEDIES = {
    errno.ENOSPC: _MAKE_ROOM,
    errno.EDQUOT: _MAKE_ROOM,
    errno.EFBIG: _MAKE_ROOM,
    errno.EROFS: _NAME_ANOTHER,
    errno.EACCES: _NAME_ANOTHER,
    errno.EPERM: _NAME_ANOTHER,
    errno.EISDIR: _NAME_ANOTHER,
    errno.ENOTDIR: _NAME_ANOTHER,
    errno.ELOOP: _NAME_ANOTHER,
    errno.ENAMETOOLONG: "give it a shorter name",
    errno.EIO: "check the disk",
    errno.ESTALE: "check the disk, which others have on their machine",
}


class UserError(Exception):
    """Bad input: one message that names what, where, the allowed values and the remedy. Exit code 2, no traceback.

    Messages are saved and handed on as much as printed: the credentials of URLs do not get into them.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(redacted(arg) if isinstance(arg, str) else arg for arg in args))


def shown(found: object, most: int = 80) -> str:
    """What a message says of a value that was found: its `repr`, cut; also of what is enormous or nested without end."""
    cut = reprlib.Repr()
    cut.maxstring = cut.maxother = cut.maxlong = most
    try:
        text = cut.repr(found)
    except (ValueError, RecursionError):  # whole numbers of thousands of digits have no `repr`
        text = f"a value of type {type(found).__name__}"
    return text if len(text) <= most else text[: most - 3] + "..."


def is_of_disk(error: OSError) -> bool:
    """Whether the disk, or the place on it that was named, is at fault."""
    return error.errno in _DISK_REMEDIES


def about_os(error: OSError) -> str:
    """What the system said, of which file, and what helps where the disk is at fault."""
    place = error.filename2 or error.filename  # of two, where it was to go
    said = f"{error.strerror or error}" + (f": '{os.fsdecode(place)}'" if place and not isinstance(place, int) else "")
    known = is_of_disk(error) and error.strerror == os.strerror(error.errno or 0)  # else mres has said it in full
    return f"{said}; {_DISK_REMEDIES[error.errno or 0]}" if known else said


def near(name: str, *known: Collection[str], otherwise: str | None = None) -> str:
    """What to say about `name`, which is none of `known`: the one that was probably meant, else what is allowed.

    The first of several collections that has a near name answers; a mapping's value is what is shown for its key.
    """
    for names in known:
        for close in difflib.get_close_matches(name, names, n=1, cutoff=0.7):
            return f"did you mean '{names[close] if isinstance(names, Mapping) else close}'?"
    return f"allowed: {', '.join(known[0])}" if otherwise is None else otherwise


def near_path(path: Path, *folders: Path) -> str:
    """ "; did you mean '…'?" about a path at which nothing is, of what lies beside it, or else in `folders`; or ""."""
    beside = {name: path.parent / name for name in _names(path.parent) if name != path.name}
    known = [beside, *({name: folder / name for name in _names(folder)} for folder in folders)]
    meant = near(path.name, *known, otherwise="")
    return meant and f"; {meant}"


def _names(folder: Path) -> list[str]:
    """Of what lies in it; of a folder of very many, some."""
    with suppress(OSError, ValueError), os.scandir(folder) as found:
        return [entry.name for entry in itertools.islice(found, 10_000)]
    return []


def install(extra: str) -> str:
    """How one of mres's extras is installed: mres is on no index."""
    return f"""`pip install -c constraints.txt -e ".[{extra}]"` in mres's folder"""


def _speaks(environ: Mapping[str, str]) -> bool:
    """Whether no other rank of this machine reports the same; variables that make no sense silence nobody."""
    numbers = [environ.get(name, "0") for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE")]
    if not all(number.isdigit() for number in numbers):
        return True
    local_rank, rank, world_size = map(int, numbers)
    return local_rank == 0 or rank >= world_size


def _say(message: str) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)


def _report(message: str, tell: Callable[[str], bool] | None) -> None:
    """Says it first, then tells the other ranks: they may be long in coming."""
    speaks = _speaks(os.environ)
    if speaks:
        _say(message)
    is_known = tell is None or tell(message)
    if not speaks and not is_known:
        _say(message)
    elif os.environ.get("RANK", "0") != "0":  # rank 0, whose words the user reads, is to come to them
        time.sleep(_HEAD_START_S)


def exit_on_user_error(main: Callable[[], int | None], tell: Callable[[str], bool] | None = None) -> Callable[[], int]:
    """Wraps a command's `main`: a `UserError`, and a disk that is full or fails, becomes one line on stderr and exit code 2;
    Ctrl-C becomes 130.

    Of a distributed job's ranks the first on each machine speaks: what is wrong is mostly wrong for all of them. Where it
    may be wrong for one alone, `tell` carries the message to the others; it returns False where a silent rank must speak
    after all.
    """

    @functools.wraps(main)
    def wrapped() -> int:
        if isinstance(sys.stdout, io.TextIOWrapper):  # the name of a file need not be text
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return main() or 0
        except UserError as error:
            message = str(error)
        except BrokenPipeError:  # `mres ... | head`: the reader has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except OSError as error:
            if not is_of_disk(error):
                raise
            message = str(UserError(about_os(error)))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr, flush=True)
            return 130
        with suppress(KeyboardInterrupt):  # who does not want to wait: all that this rank can do is ended
            _report(message, tell)
        return 2

    return wrapped
