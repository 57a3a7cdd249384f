"""Files that are whole or not there at all: hashed, fsynced, committed by rename."""

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mres.io.locks import locked


def file_sha256(path: Path, *, from_disk: bool = False) -> str:
    """Hash of a file's bytes, read in pieces; `from_disk`, not from what memory still has of them."""
    digest = hashlib.sha256()
    piece = memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        if from_disk and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while got := file.readinto(piece):
            digest.update(piece[:got])
    return digest.hexdigest()


def open_regular(path: Path, max_bytes: int | None = None) -> BinaryIO:
    """A user's file, opened to be read; what is none (a pipe that nobody fills, /dev/zero) is refused before a byte.

    Raises:
        OSError: whose `strerror` says why: no such file, not a regular one, or of more than `max_bytes`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe's would wait for a writer
    except ValueError as error:  # a zero byte, a lone surrogate
        raise OSError(errno.EINVAL, f"no file can be called so ({error})", str(path)) from None
    try:
        found = check_regular(descriptor, path)
        if max_bytes is not None and found.st_size > max_bytes:
            why = f"it has {found.st_size:,} bytes; of such a file, at most {max_bytes:,} are read"
            raise OSError(errno.EFBIG, why, str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_regular(descriptor: int, path: Path) -> os.stat_result:
    """What the system says of an open file. Raises: OSError: it is a pipe, a device, a folder …"""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, f"it is {_kind(found.st_mode)}, not a file of bytes", str(path))
    return found


def read_regular(path: Path, max_bytes: int) -> bytes:
    """The content of a user's file, bounded before it is read. Raises: OSError, as `open_regular`."""
    with open_regular(path, max_bytes) as file:
        return file.read(os.fstat(file.fileno()).st_size)


def _kind(mode: int) -> str:
    """What lies under a name, in words."""
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
    return next((word for is_kind, word in kinds if is_kind(mode)), "a device")


def bytes_sha256(content: bytes) -> str:
    """Hash of bytes."""
    return hashlib.sha256(content).hexdigest()


@contextmanager
def named(path: Path) -> Iterator[None]:
    """What the system says of a descriptor names no file: it is this one."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def write_durably(path: Path, content: bytes | memoryview) -> None:
    """Writes a file and waits until its bytes are on the disk; its name is there once its folder is `fsync`ed."""
    with named(path), path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file that is there whole, as it was before or as it is to be."""
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to fill that becomes `path` when the body ends: there is always a whole one, the one before or this one.

    One writer at a time fills it; others wait. What a killed one left of it is used up.

    Raises:
        OSError: naming `path`, which is as it was.
    """
    part = part_of(path)
    with _own(path, part) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            part.rename(path)
        except BaseException:
            with suppress(OSError):  # not in the place of what went wrong
                part.unlink()
            raise
        fsync(path.parent)


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Writes several files; none takes its name before all are on the disk, then they do in this order.

    A kill in between leaves those that come later beside their places (`part_of`).

    Raises:
        OSError: naming the file; nothing has changed, unless the disk failed as they took their names.
    """
    with ExitStack() as stack:
        try:
            for path, content in contents.items():
                file = stack.enter_context(_own(path, part_of(path)))
                with named(path):
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
        except BaseException:
            for path in contents:
                with suppress(OSError):
                    part_of(path).unlink()
            raise
        for path in contents:
            part_of(path).rename(path)
        for folder in {path.parent for path in contents}:
            fsync(folder)


def part_of(path: Path) -> Path:
    """Where a file is made that is to become `path`."""
    return path.with_name(path.name + ".part")


@contextmanager
def _own(path: Path, part: Path) -> Iterator[BinaryIO]:
    """`part`, empty and this writer's alone as long as it has that name."""
    while True:
        with named(path), ExitStack() as stack:  # also of what is written only as the file is closed
            try:
                with suppress(FileNotFoundError):
                    found = part.lstat()
                    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:  # something else would be written to
                        part.unlink()
                descriptor = stack.enter_context(_locked_or_open(part))
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from None
            if _is_at(descriptor, part):  # else who had it before has renamed it
                file = stack.enter_context(os.fdopen(descriptor, "w+b", closefd=False))
                file.truncate()
                yield file
                return


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


@contextmanager
def _locked_or_open(path: Path) -> Iterator[int]:
    """The file's descriptor, locked where the file system has locks."""
    with ExitStack() as stack:
        try:
            descriptor = stack.enter_context(locked(path))
        except OSError:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            stack.callback(os.close, descriptor)
        yield descriptor


@contextmanager
def made_aside(path: Path) -> Iterator[Path]:
    """For a library that writes a file by its name: it goes by the ending, and what is there then becomes `path`."""
    part = path.with_name(f"part-{path.name}")
    try:
        yield part
        fsync(part)
        part.rename(path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Waits until a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with named(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Makes a folder and what is missing above it, all of it on the disk."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        fsync(path.parent)


def free_bytes(path: Path) -> int:
    """Room on the disk on which `path` is, or would be made."""
    there = next(parent for parent in [path, *path.absolute().parents] if parent.exists())
    return shutil.disk_usage(there).free


def remove(path: Path) -> None:
    """Removes a file, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def remove_folder(folder: Path, *, last: str) -> None:
    """Removes what can be removed of a folder, the file `last` at the end: after a kill, it still says whose it is."""
    if folder.is_symlink():
        folder.unlink()
        return
    with suppress(OSError):
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != last:
                path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
