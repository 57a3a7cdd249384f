"""Which files are the code of a run: what git has of mres's folder, or the package; and the user's own beside."""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mres.errors import UserError

# Folders of a snapshot: what is imported by name, mres and its user's modules; and the user's files that are named by path.
CODE, OWN = "code", "own"
_TRAIN = f"{CODE}/launch/train.py"
_PACKAGE = "mres"
_NO_CODE = {"__pycache__", ".git"}


@dataclass(frozen=True)
class Checkout:
    """What git says of the folder that mres is in: the commit, what differs from it, and the names of its files.

    Files are those that git tracks, as they are now, and untracked ones that are not ignored.
    """

    sha: str
    uncommitted: tuple[str, ...]
    names: tuple[str, ...]


def checkout(root: Path) -> Checkout | None:
    """None where the package is in no checkout, or git is not there or refuses (another user's folder)."""
    try:
        names = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
        if f"{_PACKAGE}/__init__.py" not in names:  # an environment within somebody's checkout
            return None
        (sha,) = _git(root, "rev-parse", "-q", "HEAD")
        return Checkout(sha.strip(), _git(root, "status", "--porcelain", "-z", "--no-renames", "--", "."), names)
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *words: str) -> tuple[str, ...]:
    # It takes no lock: somebody may be committing.
    command = ["git", "--no-optional-locks", *words]
    done = subprocess.run(command, cwd=root, check=True, capture_output=True, timeout=60)
    return tuple(dict.fromkeys(os.fsdecode(word) for word in done.stdout.split(b"\0") if word))


def mres_files(root: Path, launch: Path, names: Iterable[str], no_code: Iterable[Path]) -> dict[str, Path]:
    """mres itself, by name in the snapshot: `names` of a checkout in `root`; without any, the package and `launch`.

    Left out is what lies in the folders `no_code` (runs, data); links to folders are, too.
    """
    apart = [path.resolve() for path in no_code if not root.resolve().is_relative_to(path.resolve())]
    found = {f"{CODE}/{name}": root / name for name in names} or _below(root / _PACKAGE, f"{CODE}/{_PACKAGE}")
    if _TRAIN not in found:
        found |= _below(launch, f"{CODE}/{launch.name}")
    return {
        name: path
        for name, path in found.items()
        if path.is_file() and not any(path.resolve().is_relative_to(folder) for folder in apart)
    }


def own_files(
    references: Iterable[str], root: Path, known: Mapping[str, Path]
) -> tuple[dict[str, Path], dict[str, str]]:
    """The user's own code that is not among the `known` files; and of each reference to a file, its name in the snapshot.

    A file brings the Python files beside it; a module, the package that it is in; and each, the modules from the same
    folder that it has imported by now. What is installed stays in the environment.

    Args:
        references: `path/to/file.py:NAME` or `package.module:NAME` (`mres.io.plugins`), or a name of mres's own.
    """
    found: dict[str, Path] = {}
    names: dict[str, str] = {}
    tops: set[str] = set()
    places = {path.resolve(): name for name, path in known.items()}
    folders: dict[Path, str] = {}
    for reference in references:
        where, _, thing = reference.rpartition(":")
        file = Path(where).resolve()
        if where.endswith(".py"):
            folder = folders.setdefault(file.parent, f"{OWN}/{len(folders)}")
            if file not in places:
                beside = {f"{folder}/{path.name}": path for path in file.parent.glob("*.py") if path.is_file()}
                found |= beside
                places |= {file.parent / path.name: name for name, path in beside.items()}
            names[reference] = f"{places[file]}:{thing}"
        elif where:
            tops.add(where.partition(".")[0])
    users = {*folders, *(place.parent.resolve() for top in tops for place in _own_places(top, root))}
    taken = {name.split("/")[1] for name in known}
    for top in sorted(tops | _imported_from(users)):
        found |= _module_files(top, root, taken)
    return found, names


def _imported_from(folders: set[Path]) -> set[str]:
    """The modules, or packages, that lie in these folders and have been imported."""
    tops = [name for name in sys.modules if "." not in name]
    return {
        top
        for top in tops
        for place in _places(top)
        if place.name in (top, f"{top}.py") and place.parent.resolve() in folders
    }


def _module_files(top: str, root: Path, taken: Collection[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in _own_places(top, root):
        if path.name in taken:
            raise UserError(
                f"the module '{top}' ('{path}') would lie beside mres's own '{top}' in the job's snapshot; name what is in it "
                "by its file, rename it, or submit with --no-snapshot"
            )
        found |= _below(path, f"{CODE}/{path.name}") if path.is_dir() else {f"{CODE}/{path.name}": path}
    return {name: path for name, path in found.items() if path.is_file()}


def _own_places(top: str, root: Path) -> list[Path]:
    """Where a module lies that is neither installed nor beside mres."""
    return [place for place in _places(top) if not _is_installed(place) and place.resolve().parent != root.resolve()]


def _places(top: str) -> list[Path]:
    """The file of a module, or the folders of a package."""
    spec = getattr(sys.modules[top], "__spec__", None) if top in sys.modules else find_spec(top)
    return [] if spec is None else [Path(place) for place in spec.submodule_search_locations or [spec.origin or ""]]


def _is_installed(path: Path) -> bool:
    """Into the environment, which a snapshot does not hold."""
    environment = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return bool({"site-packages", "dist-packages"} & {*path.parts}) or any(
        path.is_relative_to(place) for place in environment
    )


def _below(folder: Path, name: str) -> dict[str, Path]:
    return {f"{name}/{path.relative_to(folder)}": path for path in _walk(folder)}


def _walk(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(set(folders) - _NO_CODE)
        yield from (Path(place, file) for file in files if not file.endswith((".pyc", ".pyo")))
