"""Pictures whose pixels are labels: numbers, palette entries or colours; and the files that name them.

Shapes: H×W the picture.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mres.errors import UserError, shown
from mres.io.files import bytes_sha256, file_sha256, read_regular
from mres.io.json_files import JsonError, parse_json
from mres.pixels.picture import PictureError, header_of, open_picture, turned
from mres.records import RecordError

if TYPE_CHECKING:
    from PIL import Image

_MAX_BYTES = 1 << 28
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_COLOURS_FIRST = re.compile(r"(\d+)[\s,]+(\d+)[\s,]+(\d+)[\s,]+(\D.*)")  # CamVid: 64 128 64  Animal
_COLOURS_LAST = re.compile(
    r"([^,:]+)[,:]\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*(?:[:,].*)?"
)  # class_dict.csv, CVAT's labelmap.txt
_NUMBER_FIRST = re.compile(r"(\d+)\s*[,:;\s]\s*(\D.*)")
_NUMBER_LAST = re.compile(r"(\D[^,:;]*?)\s*[,:;\t]\s*(\d+)")
_IGNORED = re.compile(r"(?i)_.*|back ?ground|void|un-?labell?ed|ignored?|unknown")


@dataclass(frozen=True)
class LabelNames:
    """{value: name}; `are_colours`: a value is red·65536 + green·256 + blue."""

    names: dict[int, str]
    are_colours: bool
    sha256: str

    def is_ignored(self, value: int) -> bool:
        """Whether it names what is not annotated: "_…", background, void, unlabeled, ignore."""
        return _IGNORED.fullmatch(self.names[value]) is not None


def read_names(path: Path) -> LabelNames:
    """The names in a file: JSON ({"0": name}, {name: 0}, {name: [r, g, b]}, [name, …]) or one a line, with or without numbers.

    Lines: `name` (the first is 0; 255 if it is __ignore__, as LabelMe writes it), `0 name`, `name,0`, `r g b name`,
    `name,r,g,b` (with a heading), `name:r,g,b::` (CVAT). `# …` is a comment; "#name" alone on its line is a name.

    Raises:
        UserError: it cannot be read, or is none of these.
    """
    try:
        content = read_regular(path, _MAX_BYTES)
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the names in '{path}' cannot be read: {getattr(error, 'strerror', None) or error} (--names)"
        ) from None
    try:
        pairs = _of_json(parse_json(text, f"'{path}'")) if path.suffix.lower() == ".json" else _of_lines(text)
        if not pairs or len({len(key) for key, _ in pairs}) > 1 or len(dict(pairs)) < len(pairs):
            raise ValueError("a value without a name, or one with two")
        values = {_value(key): name.strip() for key, name in pairs}
        if not all(values.values()):
            raise ValueError("a blank name")
    except (JsonError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(
            f"'{path}' does not name labels ({error}); expected a name a line, or JSON {{value: name}} (--names)"
        ) from None
    return LabelNames(values, len(pairs[0][0]) == 3, bytes_sha256(content))


def _value(key: tuple[int, ...]) -> int:
    """A number, or a colour as one. Raises: ValueError."""
    most = {1: 65535, 3: 255}.get(len(key))
    if most is None or not all(type(part) is int and 0 <= part <= most for part in key):
        raise ValueError(f"the value {shown(key)}")
    return key[0] if len(key) == 1 else (key[0] << 16) + (key[1] << 8) + key[2]


def _of_json(value: object) -> list[tuple[tuple[int, ...], str]]:
    if isinstance(value, list):
        return [((number,), name) for number, name in enumerate(value)]
    if not isinstance(value, dict):
        raise ValueError(f"it is {type(value).__name__}")
    pairs: list[tuple[tuple[int, ...], str]] = []
    for key, item in value.items():
        if isinstance(item, str):
            pairs.append(((int(key),), item))
        else:
            pairs.append((tuple(item) if isinstance(item, list) else (int(item),), key))
    return pairs


def _of_lines(text: str) -> list[tuple[tuple[int, ...], str]]:
    every = [line.strip() for line in text.splitlines() if not re.match(r"#(\s|$)", line)]
    lines = [line for line in every if line]
    for pattern, name in ((_COLOURS_FIRST, -1), (_COLOURS_LAST, 0), (_NUMBER_FIRST, -1), (_NUMBER_LAST, 0)):
        found = [pattern.fullmatch(line) for line in lines]
        groups = [list(match.groups()) for match in found if match]
        others = [line for line, match in zip(lines, found, strict=True) if match is None]
        if groups and len(others) <= (found[0] is None):  # or one, a heading
            return [(name_, tuple(map(int, row)))[::-1] for row in groups for name_ in [row.pop(name)]]
        if len(groups) > len(others):
            raise ValueError(f"most lines have a number, {others[-1]!r:.60} has none")
    if "" in "\n".join(every).strip().splitlines():
        raise ValueError("a blank line between names that are counted")
    first = -1 if lines and lines[0] == "__ignore__" else 0
    return [((number if number >= 0 else 255,), line) for number, line in enumerate(lines, start=first)]


def files_sha256(paths: Iterable[Path], folder: Path) -> str:
    """Of their names below the folder, and of their bytes."""
    lines = [f"{path.relative_to(folder).as_posix()}\n{file_sha256(path)}\n" for path in paths]
    return bytes_sha256("".join(lines).encode("utf-8", "surrogateescape"))


def read_labels(path: Path, are_colours: bool, where: str) -> np.ndarray:
    """A picture's labels_HW: its numbers, or where names are those of colours, red·65536 + green·256 + blue.

    An EXIF orientation of its own turns it upright, as one turns its image.

    Raises:
        RecordError: not a picture, or colours where numbers are due.
    """
    try:
        content = read_regular(path, _MAX_BYTES)
        with open_picture(content) as picture:
            orientation = header_of(picture, content).orientation
            if are_colours:
                rgb_HWC = np.asarray(picture.convert("RGB"), np.int32)
                return turned((rgb_HWC[..., 0] << 16) + (rgb_HWC[..., 1] << 8) + rgb_HWC[..., 2], orientation)
            labels_HW = _stored_numbers(np.asarray(picture), picture, content)
    except PictureError as error:
        raise RecordError(f"{where}: '{path}' {error}") from None
    except OSError as error:
        raise RecordError(f"{where}: '{path}' cannot be read: {error.strerror or error}") from None
    except (ValueError, SyntaxError) as error:
        raise RecordError(f"{where}: '{path}' cannot be decoded: {error}") from None
    if labels_HW.ndim == 3 and (labels_HW[..., :3] == labels_HW[..., :1]).all():
        labels_HW = labels_HW[..., 0]  # grey, stored as a colour
    if labels_HW.ndim != 2 or labels_HW.dtype.kind not in "bui":
        raise RecordError(
            f"{where}: '{path}' has colours, and the names are numbered; name colours (`name,r,g,b` a line)"
        )
    return turned(labels_HW.astype(np.int32), orientation)


def _stored_numbers(pixels: np.ndarray, picture: "Image.Image", content: bytes) -> np.ndarray:
    """As a PNG holds them: Pillow spreads grey values of 2 and 4 bits over 0 to 255, and cuts colours of 16 to 8. Raises: ValueError."""
    bits = content[24] if picture.format == "PNG" else 8  # of a value
    if bits == 16 and pixels.ndim == 3:
        raise ValueError("numbers of 16 bits are read of grey pictures only")
    return pixels // (255 // (2**bits - 1)) if picture.mode == "L" and bits < 8 else pixels


def image_name(images: Path, stem: str, label_map: Path) -> str:
    """The name of the image of a label map, below `images`; where there is none, the one that messages will miss."""
    for name in dict.fromkeys((stem, stem.rpartition("/")[2])):
        for suffix in (*_SUFFIXES, *map(str.upper, _SUFFIXES)):
            place = images / f"{name}{suffix}"
            if place.is_file() and not place.samefile(label_map):
                return f"{name}{suffix}"
    return f"{stem}{_SUFFIXES[0]}"
