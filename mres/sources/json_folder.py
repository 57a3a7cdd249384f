"""A folder with a JSON file for each image, as LabelMe and Supervisely write it."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mres.errors import UserError
from mres.io.files import bytes_sha256, read_regular
from mres.io.json_files import JsonError, parse_object
from mres.records import MAX_SIDE, RecordError
from mres.sources.reading import need_folder

_MAX_BYTES = 1 << 29  # LabelMe's hold the image, in base64


class JsonFolder:
    """The files below `folder` that fit `pattern`, in the order of their paths; each is read when it is asked for.

    Attributes:
        files: paths relative to the folder.
        sha256: of their paths and bytes.
        keys: what `key` says of each file; "" of one that is broken.

    Raises:
        UserError: no such folder, or no such file in it.
    """

    def __init__(self, folder: Path, pattern: str, key: Callable[[dict[str, Any]], Any], option: str) -> None:
        need_folder(folder, option)
        self.folder = folder
        self.files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob(pattern))
        if not self.files:
            raise UserError(f"no file {pattern} in '{folder}' ({option})")
        digest, self.keys = hashlib.sha256(), list[str]()
        for number, name in enumerate(self.files):
            try:
                content = self._content(number)
                found = key(parse_object(content, name))
            except UserError:  # said when its record is made
                content, found = b"", ""
            digest.update(f"{name}\n{bytes_sha256(content)}\n".encode("utf-8", "surrogateescape"))
            self.keys.append(found if isinstance(found, str) else "")
        self.sha256 = digest.hexdigest()

    def where(self, number: int) -> str:
        return str(self.folder / self.files[number])

    def value(self, number: int) -> dict[str, Any]:
        """Raises: RecordError: it cannot be read, or is no JSON object."""
        try:
            return parse_object(self._content(number), self.where(number))
        except JsonError as error:
            raise RecordError(str(error)) from None

    def _content(self, number: int) -> bytes:
        try:
            return read_regular(self.folder / self.files[number], _MAX_BYTES)
        except OSError as error:
            raise RecordError(f"{self.where(number)}: cannot be read: {error.strerror}") from None


def size_of(value: dict[str, Any], height: str, width: str, where: str) -> tuple[int, int]:
    """(height, width) in two fields. Raises: RecordError."""
    found = value.get(height), value.get(width)
    for side in found:
        if not isinstance(side, int) or isinstance(side, bool) or not 1 <= side <= MAX_SIDE:
            raise RecordError(
                f"{where}: {height} and {width} are {found!r:.60}, expected whole numbers, 1 to {MAX_SIDE}"
            )
    return found  # type: ignore[return-value]  # checked one by one
