"""The images of a data set below one folder, found by names that other tools wrote on other systems."""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from mres.records import RecordError

ELSEWHERE = "images found under another spelling or folder than their name says"
_MAX_FILES = 2_000_000  # more are not searched for a bare name: the folder is hardly one of images
_SHOWN = 5


def plain_path(name: str) -> PurePosixPath:
    """The relative path that a tool's name for an image comes down to, without what leads upwards or to another machine.

    `..\\..\\upload\\a.jpg`, `D:\\upload\\a.jpg`, `/data/local-files/?d=upload/a.jpg` and `https://host/upload/a.jpg?v=1` are
    all `upload/a.jpg`.
    """
    path = name.replace("\\", "/")
    if "?d=" in path:  # Label Studio's local files
        path = path.partition("?d=")[2].partition("&")[0]
    elif address := re.match(r"[A-Za-z][A-Za-z0-9+.-]*://[^/]*([^?#]*)", path):
        path = address[1]
    parts: list[str] = []
    for part in re.sub(r"^/*[A-Za-z]:(?=/)", "", path).split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return PurePosixPath(*parts)


class ImageFolder:
    """Finds images by the names that annotations give them, always within the folder.

    A name is taken as it stands, then without its first folders, down to the bare name; then in other spellings of it:
    with forward slashes and without what only another machine has (`plain_path`), percent signs decoded, accents composed
    or decomposed; at last it is looked for in all folders below. Where several images of the data set share their last
    parts, so many parts of the name must fit that they are told apart.

    Args:
        folder: what `--images` names.
        names: of all images of the data set.
        notes: where images are counted that were found under another spelling or in a folder that nobody named.
    """

    def __init__(self, folder: Path, names: Collection[str], notes: "Counter[str]") -> None:
        self._folder, self._notes, self._at_least = folder, notes, _parts_that_differ(names)

    def find(self, name: str, where: str) -> Path:
        """The image's file. Raises: RecordError: there is none, or there are several; it says what was tried."""
        tried: list[str] = []
        for path, is_respelled in self._places(name):
            if os.path.isfile(self._folder / path):
                if is_respelled:
                    self._notes[ELSEWHERE] += 1
                return self._folder / path
            if os.path.lexists(self._folder / path) and not os.path.isdir(self._folder / path):
                return self._folder / path  # a pipe, a device, a link to nothing: whoever reads it says so
            tried.append(str(path))
        found = self._below(name)
        if len(found) == 1:
            self._notes[ELSEWHERE] += 1
            return self._folder / found[0]
        if found:
            shown = ", ".join(map(repr, found[:_SHOWN])) + (" …" if len(found) > _SHOWN else "")
            raise RecordError(f"{where}: {name!r} may be any of {len(found)} files in '{self._folder}': {shown}")
        if not tried:
            raise RecordError(f"{where}: {name!r} is no name of a file within '{self._folder}'")
        place = repr(str(self._folder / tried[-1]))
        also = ", ".join(map(repr, tried[:-1][:_SHOWN]))
        raise RecordError(
            f"{where}: {place} cannot be read: No such file"
            + (f"; tried, too: {also}" if also else "")
            + f"; the bare name is in no folder below{self._alike(name)}"
        )

    def _places(self, name: str) -> Iterator[tuple[PurePosixPath, bool]]:
        """Relative paths under which the image may lie, and whether they are another spelling of its name."""
        literal = PurePosixPath(name)
        parts = literal.parts
        if parts and not literal.is_absolute() and ".." not in parts:
            yield literal, False
            for start in range(1, len(parts) - self._at_least + 1):
                yield PurePosixPath(*parts[start:]), False
        for spelling in _spellings(name):
            for start in range(len(spelling.parts) - self._at_least + 1):
                if spelling != literal:
                    yield PurePosixPath(*spelling.parts[start:]), True

    def _below(self, name: str) -> list[str]:
        """The files anywhere in the folder whose last parts are the name's; those with most of them in common."""
        parts = name_parts(name)
        if not self._at_least <= len(parts):
            return []
        common = {}
        for path in self._files.get(parts[-1].casefold(), ()):
            found = name_parts(path)
            common[path] = next(
                (n for n, (a, b) in enumerate(zip(found[::-1], parts[::-1], strict=False)) if a != b),
                min(len(found), len(parts)),
            )
        best = max(common.values(), default=0)
        return [path for path, num in common.items() if num == best] if best >= self._at_least else []

    def _alike(self, name: str) -> str:
        """What is there under nearly this name, for the message."""
        parts = name_parts(name)
        same = self._files.get(parts[-1].casefold()) if parts else None
        return f"; there is {same[0]!r}" if same else ""

    @cached_property
    def _files(self) -> dict[str, list[str]]:
        """{bare name, case ignored: relative paths of the files below that have it}; made when a name was not found."""
        files: dict[str, list[str]] = defaultdict(list)
        num = 0
        for place, folders, names in os.walk(self._folder):
            folders.sort()
            for name in sorted(names):
                path = os.path.relpath(os.path.join(place, name), self._folder)
                files[unicodedata.normalize("NFC", name).casefold()].append(path)
            if (num := num + len(names)) > _MAX_FILES:
                return {}
        return files


def _spellings(name: str) -> list[PurePosixPath]:
    """The name's plain path, as written and with its percent signs decoded, each with accents as written, composed, decomposed."""
    plain = [str(plain_path(text)) for text in dict.fromkeys((name, unquote(name)))]
    forms = [unicodedata.normalize(form, text) for text in plain for form in ("NFC", "NFD")]
    return [PurePosixPath(text) for text in dict.fromkeys((*plain, *forms)) if text != "."]


def name_parts(name: str) -> tuple[str, ...]:
    """The parts of a name's plain path, percent signs decoded and accents composed: as names are compared."""
    return tuple(unicodedata.normalize("NFC", str(plain_path(unquote(name)))).split("/"))


def _parts_that_differ(names: Collection[str]) -> int:
    """How many last parts of their paths tell the names apart; more than any has, where all of them do not."""
    paths = [name_parts(name) for name in set(names)]
    longest = max(map(len, paths), default=1)
    nums = range(1, longest + 1)
    return next((num for num in nums if len({path[-num:] for path in paths}) == len(paths)), longest + 1)
