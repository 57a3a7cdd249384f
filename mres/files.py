"""Files and folders that are whole or not there at all: hashed, fsynced, published by rename."""

import hashlib
import os
import shutil
from pathlib import Path


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


def bytes_sha256(content: bytes) -> str:
    """Hash of bytes."""
    return hashlib.sha256(content).hexdigest()


def write_durably(path: Path, content: bytes) -> None:
    """Writes a file and waits until its bytes are on the disk; its name is there once its folder is `fsync`ed."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file that is there whole, as it was before or as it is to be."""
    part = path.with_name(path.name + ".part")
    write_durably(part, content)
    part.rename(path)
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Waits until a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
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


def publish_folder(part: Path, final: Path) -> None:
    """Renames `part`, whose content is on the disk, to `final`; what stands there is removed once it is replaced."""
    replaced = final.with_name(final.name + ".replaced")
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
    part.rename(final)
    fsync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)
