"""Folders in the making: filled aside by one process at a time, taken up after a kill, there whole or not at all.

    <out>.incomplete/{journal.jsonl, result/…}

The journal's first line says what is made of what; who fills the result may note in others how far it is.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mres.errors import UserError
from mres.io.files import make_folder, remove, remove_folder
from mres.io.folders import commit_folder, settle
from mres.io.locks import locked

RESULT, JOURNAL = "result", "journal.jsonl"
_PURPOSE = "purpose"


@dataclass(frozen=True, slots=True)
class Staged:
    """What is made in `root`, which becomes `out`."""

    out: Path
    root: Path
    purpose: str

    @property
    def result(self) -> Path:
        """The folder that becomes `out`."""
        return self.root / RESULT

    @property
    def journal(self) -> Path:
        """It begins with the purpose."""
        return self.root / JOURNAL

    def take_up(self) -> None:
        """Begins, unless what is there was begun for the same purpose."""
        begun = self.journal.is_file() and self.journal.read_bytes().startswith(self._first_line)
        if not begun or not self.result.is_dir():
            self.begin()

    def begin(self) -> None:
        """Removes what is there, and begins anew."""
        for path in self.root.iterdir() if self.root.is_dir() else ():
            if path.name != JOURNAL:
                remove(path)
        make_folder(self.result)
        # Not a new file: this one is locked.
        self.journal.write_bytes(self._first_line)

    @property
    def _first_line(self) -> bytes:
        return json.dumps({_PURPOSE: self.purpose}).encode() + b"\n"

    def commit(self) -> None:
        """Renames the result, whose content is on the disk, to `out`, and removes what it replaces."""
        commit_folder(self.result, self.out)


@contextmanager
def staged(
    out: Path, purpose: str | None = None, *, keep: Callable[[Path, BaseException], bool] = lambda *_: False
) -> Iterator[Staged]:
    """Holds the folder in which `out` is made for this process alone; with the body's end it is gone.

    Args:
        purpose: what an interrupted work for the same one has left is in the result; without, it is empty.
        keep: whether, where the body raises, this result is something to go on from, and stays.

    Raises:
        UserError: another process is at work there, or something else is.
    """
    root = out.with_name(out.name + ".incomplete")
    _check_ours(root)
    stage = Staged(out, root, uuid.uuid4().hex if purpose is None else purpose)
    with _held(root, out), _left_tidy(stage, keep):
        stage.take_up()
        yield stage


def sweep(out: Path) -> None:
    """Removes what a kill left beside `out` once that was there: the emptied folder, and what `out` had replaced.

    What another process is at, or somebody may go on with, stays, and so does what is of others.
    """
    if not out.name:  # the root folder has nothing beside it
        return
    stage = Staged(out, out.with_name(out.name + ".incomplete"), "")
    with suppress(UserError, OSError):
        _check_ours(stage.root)
        if stage.root.is_dir() and not stage.result.exists():
            with _held(stage.root, out):
                remove_folder(stage.root, last=JOURNAL)
    with suppress(OSError):
        settle(out)


def _check_ours(root: Path) -> None:
    """Whether nothing is at `root`, or what an interrupted work has left, which always has a journal.

    Raises:
        UserError: something else is there.
    """
    if not os.path.lexists(root):
        return
    ours = False
    if root.is_dir() and not root.is_symlink():
        start = f'{{"{_PURPOSE}": '.encode()
        with suppress(OSError), (root / JOURNAL).open("rb") as file:
            ours = start.startswith(file.read(len(start)))  # a kill may have cut it off
        with suppress(OSError):
            ours = ours or not any(root.iterdir())
    if not ours:
        raise UserError(
            f"'{root}' is not what an interrupted command has left; remove or rename it, or name another folder"
        )


@contextmanager
def _held(root: Path, out: Path) -> Iterator[None]:
    """Raises: UserError: another process holds it."""
    with ExitStack() as stack:
        try:
            descriptor = stack.enter_context(locked(root / JOURNAL, wait=False))
            if not os.path.samestat(os.fstat(descriptor), os.stat(root / JOURNAL)):
                raise BlockingIOError
        except (BlockingIOError, FileNotFoundError):  # the latter: one that has just ended removed it
            raise UserError(
                f"another process is making '{out}' (in '{root}'); wait for it, end it, or name another folder"
            ) from None
        except OSError:
            pass  # a file system without locks; one that takes nothing says so when the result is made
        yield


@contextmanager
def _left_tidy(stage: Staged, keep: Callable[[Path, BaseException], bool]) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if stage.result.is_dir() and keep(stage.result, error):
            note = f"note: what was finished is kept in '{stage.root}'; the same command goes on from it"
            print(note, file=sys.stderr, flush=True)
        else:
            remove_folder(stage.root, last=JOURNAL)  # without it, nobody knows whose the rest is
        raise
    remove_folder(stage.root, last=JOURNAL)
