"""The container that a job's tasks run in: what srun is told of it, through NVIDIA's plugin pyxis."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mres.credentials import redacted
from mres.errors import UserError


@dataclass(frozen=True)
class Mount:
    """A folder of the node, where it is seen inside, and pyxis's flags, such as ro."""

    outside: PurePosixPath
    inside: PurePosixPath
    flags: str = ""

    def __str__(self) -> str:
        return f"{self.outside}:{self.inside}" + (f":{self.flags}" if self.flags else "")


@dataclass(frozen=True)
class Container:
    """An image, and the mounts that the user has asked for; `workdir` is where the tasks start, inside as outside."""

    image: str
    mounts: tuple[Mount, ...]
    workdir: Path

    def seeing(self, *folders: Path) -> "Container":
        """With mounts for what the job itself reads and writes, at the same path inside, where none covers it yet."""
        mounts = list(self.mounts)
        for folder in sorted({*folders, self.workdir}):  # what lies above comes first and covers what is below
            inside = PurePosixPath(folder)
            if _place_outside(mounts, inside) != inside:
                mounts.append(Mount(inside, inside))
        return Container(self.image, tuple(mounts), self.workdir)

    def outside(self, path: Path) -> Path | None:
        """Where on the node lies what the container sees at an absolute `path`; None, if it is of the image."""
        place = _place_outside(self.mounts, PurePosixPath(path))
        return None if place is None else Path(place)

    def srun_options(self) -> tuple[str, ...]:
        return (
            f"--container-image={self.image}",
            f"--container-mounts={','.join(map(str, self.mounts))}",
            f"--container-workdir={self.workdir}",
        )


def _place_outside(mounts: Sequence[Mount], path: PurePosixPath) -> PurePosixPath | None:
    """By the deepest mount that covers it; of two at one place the later one lies on top."""
    covering = [mount for mount in mounts if path.is_relative_to(mount.inside)]
    if not covering:
        return None
    mount = max(reversed(covering), key=lambda mount: len(mount.inside.parts))
    return mount.outside / path.relative_to(mount.inside)


def make_container(image: str | None, mounts: Sequence[str], workdir: Path) -> Container | None:
    """What `--container-image` and `--container-mounts` ask for; None without an image.

    Raises:
        UserError: mounts without an image, an image or a mount that pyxis would read as something else.
    """
    if image is None:
        if mounts:
            raise UserError("--container-mounts has no effect without --container-image; give the image, or remove it")
        return None
    parsed = tuple(_mount(text) for given in mounts for text in given.split(","))
    return Container(_image(image, workdir), parsed, workdir)


def _image(text: str, workdir: Path) -> str:
    if re.search(r"\s", text) or redacted(text) != text:
        raise UserError(
            f"--container-image {text!r}: expected an image such as nvcr.io#nvidia/pytorch:24.05-py3, or a .sqsh file's path"
        )
    if text.startswith(("/", ".")) or text.endswith((".sqsh", ".squashfs")):
        return str(workdir / text)
    registry, slash, rest = text.removeprefix("docker://").partition("/")
    if slash and re.search(r"[.:]", registry) and "#" not in text:
        raise UserError(
            f"--container-image {text}: pyxis looks for it on Docker Hub; write {registry}#{rest}, or a .sqsh file's path"
        )
    return text


def _mount(text: str) -> Mount:
    parts = text.split(":")
    outside, inside = parts[0], parts[1] if len(parts) > 1 and parts[1] else parts[0]
    if len(parts) > 3 or not (outside.startswith("/") and inside.startswith("/")):
        raise UserError(
            f"--container-mounts {text!r}: expected /OUTSIDE:/INSIDE, /OUTSIDE:/INSIDE:ro, or /PATH for both"
        )
    return Mount(PurePosixPath(outside), PurePosixPath(inside), parts[2] if len(parts) == 3 else "")
