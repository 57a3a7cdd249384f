"""What readers of foreign files share: JSON with its hash, folders, images, their sizes and ids, options that name paths."""

import argparse
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from mres.errors import UserError, near_path
from mres.io.files import read_regular
from mres.io.json_files import read_json_table
from mres.pixels.picture import MAX_IMAGE_BYTES, Header, PictureError, read_header
from mres.pixels.upright import Frame
from mres.records import RecordError
from mres.sources.coco_masks import MaskSizeError
from mres.sources.image_folder import ImageFolder, plain_path

Key = TypeVar("Key")
Made = TypeVar("Made")


@dataclass(frozen=True)
class JsonFile:
    """A JSON file of a data set.

    Attributes:
        sha256: of its bytes.
    """

    path: Path
    value: Any
    sha256: str

    @classmethod
    def read(cls, path: Path, named_by: str = "--annotations") -> "JsonFile":
        """Raises: UserError: there is none (`named_by` is the remedy), or it cannot be read as JSON."""
        try:
            return cls(path, *read_json_table(path))
        except FileNotFoundError:
            raise UserError(f"no annotations at '{path}' ({named_by}){near_path(path)}") from None

    @property
    def name(self) -> str:
        """Folder and name of the file; the same on every machine."""
        return name_of(self.path)


def name_of(path: Path) -> str:
    """Folder and name of a file; the same on every machine."""
    return f"{path.resolve().parent.name}/{path.name}"


def id_of(value: Any) -> int | str | None:
    """An id as it is compared: 7, 7.0, "7" and "7.0" are one, "007" is another; None for what is no id."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str):
        number = re.fullmatch(r"\s*(-?(?:0|[1-9][0-9]{0,30}))(?:\.0+)?\s*", value)
        return int(number[1]) if number else value.strip() or None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def need_folder(folder: Path, option: str) -> None:
    """Raises: UserError: there is none."""
    if not folder.is_dir():
        raise UserError(f"no folder at '{folder}' ({option})")


def read_image(images: ImageFolder, file_name: str, where: str) -> bytes:
    """An image's bytes. Raises: RecordError: no such file among the images, or not an image."""
    place = images.find(file_name, where)
    return image_file(place, where)


def image_file(place: Path, where: str) -> bytes:
    """The bytes of an image's file. Raises: RecordError: no such file, or none of a format of pictures that is read."""
    try:
        content = read_regular(place, MAX_IMAGE_BYTES)
        read_header(content)
    except OSError as error:
        raise RecordError(f"{where}: '{place}' cannot be read: {error.strerror}") from None
    except PictureError as error:
        raise RecordError(f"{where}: '{place}' {error}") from None
    return content


def _header(image: bytes, where: str) -> Header:
    try:
        return read_header(image)
    except PictureError as error:
        raise RecordError(f"{where}: the image {error}") from None


def in_size_of_masks(image: bytes, where: str, made: Callable[[int, int], Made], frame: Frame = "auto") -> Made:
    """made(height, width), which draws the image's masks: of the upright picture, or where those do not fit, as stored.

    Args:
        frame: the one of the two that was chosen, if not "auto".

    Raises:
        RecordError: not an image, or masks of neither size.
    """
    header = _header(image, where)
    sizes = {"auto": (header.upright_size, header.size), "upright": (header.upright_size,), "stored": (header.size,)}
    misfits = []
    for width, height in dict.fromkeys(sizes[frame]):
        try:
            return made(height, width)
        except MaskSizeError as error:
            misfits.append(error)
    raise misfits[-1] if header.orientation == 1 else misfit_of(misfits[-1], header, frame)


def misfit_of(error: MaskSizeError, header: Header, frame: Frame = "auto") -> RecordError:
    """The error, with the image's own size, or both of one that EXIF turns: its mask may be of the other one."""
    chosen = "" if frame == "auto" else f" (--orientation {frame})"
    return RecordError(f"{error}; the image: {header.sizes()}{chosen}")


def record_ids(file_names: Mapping[Key, str], *, alike: bool) -> dict[Key, str]:
    """Each file's name without its suffix; where that repeats with its folders, where that does too with the suffix.

    Args:
        alike: where one of them needs its folders or suffix, all have them.
    """
    paths = {key: plain_path(name) for key, name in file_names.items()}
    forms: list[Callable[[PurePosixPath], str]] = [
        lambda path: path.stem,
        lambda path: str(path.with_suffix("") if path.name else path),
        str,
    ]
    counts = [Counter(map(form, paths.values())) for form in forms]
    shortest = next((n for n, count in enumerate(counts) if max(count.values(), default=1) == 1), 2) if alike else 0

    def record_id(path: PurePosixPath) -> str:
        texts = [form(path) for form in forms]
        own = next((n for n, text in enumerate(texts) if counts[n][text] == 1), 2)
        return texts[max(own, shortest)]

    return {key: record_id(path) for key, path in paths.items()}


def add_choice(parser: argparse.ArgumentParser, option: str, choices: Sequence[str], what: str) -> None:
    """An option that must be given, one of `choices`."""
    parser.add_argument(option, choices=choices, required=True, default=argparse.SUPPRESS, help=what)


def add_paths(parser: argparse.ArgumentParser, *options: tuple[str, str, str]) -> None:
    """Options that must be given: (name, what stands for the path in the help, help)."""
    for option, metavar, what in options:
        parser.add_argument(option, type=Path, required=True, default=argparse.SUPPRESS, metavar=metavar, help=what)
