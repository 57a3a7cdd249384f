"""The manifest of a shard set: what it holds, what it was made from, and the hashes that fix its bytes."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mres.errors import UserError, near_path
from mres.io.files import file_sha256
from mres.io.json_files import JsonError, parse_json, read_json
from mres.pixels.upright import UPRIGHT
from mres.records import GRANULARITIES, ImageRecord
from mres.shards.storage import Storage, is_remote, join

FORMAT = "mres-shards"
VERSION = 2
MANIFEST_NAME = "manifest.json"
QUARANTINE_NAME = "quarantine.jsonl"
BUILD_HINT = "make one with `python tools/shard.py build …`"

Sha256 = Field(pattern=r"^[0-9a-f]{64}$")


Number = Annotated[int, Field(ge=0, le=2**50)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Shard(_Strict):
    """One file of records.

    `records` is how many of them this set has; a view may have fewer than the file holds. `part` is the position in
    the manifest's `parts` of the set whose folder the file lies in; None: the set's own.
    """

    name: str = Field(pattern=r"^shard-\d{6,}\.(tar|mds)$")
    bytes: Number
    sha256: str = Sha256
    records: int = Field(ge=1, le=2**32)
    part: int | None = None


class IndexFile(_Strict):
    """The file `index.npy`, or `digests.npy`."""

    bytes: Number
    sha256: str = Sha256

    @classmethod
    def of(cls, path: Path) -> "IndexFile":
        return cls(bytes=path.stat().st_size, sha256=file_sha256(path))


class Part(_Strict):
    """A set that a view takes records from: its folder, relative to the view's (or a URL), and its fingerprint."""

    folder: str = Field(min_length=1)
    sha256: str = Sha256


class LeakCheck(_Strict):
    """What `tools/shard.py leakcheck` found: records whose image is one of the held-out ones.

    `against` names each held-out set and how many images it has; `by_id` and `by_hash` count records of this set.
    """

    against: dict[str, int]
    max_distance: int = Field(ge=0)
    images: int = Field(ge=0)
    by_id: int = Field(ge=0)
    by_hash: int = Field(ge=0)
    leaks: int = Field(ge=0)
    list_sha256: str = Sha256


class Counts(_Strict):
    """How much a set holds; `by_*` are {granularity: {name: number}}."""

    images: int = Field(ge=1, le=2**50)
    targets: dict[str, Number]
    expressions: dict[str, Number]
    targets_by_category: dict[str, dict[str, Number]]
    expressions_by_kind: dict[str, dict[str, Number]]
    images_by_split: dict[str, Number]
    quarantined: int = Field(0, ge=0)


class Manifest(_Strict):
    """The content of `manifest.json`; `sha256`, the fingerprint, is the hash of all but the leak check and names the set."""

    format: Literal["mres-shards"] = "mres-shards"
    version: Literal[2] = 2
    source: dict[str, Any]
    options: dict[str, Any]
    counts: Counts
    index: IndexFile
    digests: IndexFile | None = None
    shards: list[Shard] = Field(min_length=1)
    parts: list[Part] = []
    leakcheck: LeakCheck | None = None
    sha256: str = Sha256

    @model_validator(mode="after")
    def _check(self) -> "Manifest":
        if any(shard.part is not None and not 0 <= shard.part < len(self.parts) for shard in self.shards):
            raise ValueError("a shard names a part that is not in 'parts'")
        return self

    @property
    def is_upright(self) -> bool:
        """Whether its images are upright, of 8 bits; False: as files had them, which is how they are read."""
        return UPRIGHT.items() <= self.options.items()

    @property
    def is_view(self) -> bool:
        return bool(self.parts)

    def summary(self) -> str:
        """One line for people."""
        counts = self.counts
        texts = [f"{counts.images} images in {len(self.shards)} shards"]
        texts += [f"{counts.expressions[g]} {g} expressions of {counts.targets[g]} masks" for g in GRANULARITIES]
        if counts.quarantined:
            texts.append(f"{counts.quarantined} bad records left out (listed in {QUARANTINE_NAME})")
        return ", ".join(texts)

    def to_bytes(self) -> bytes:
        """The content of its file."""
        text = json.dumps(self.content(), indent=2, ensure_ascii=False) + "\n"
        return text.encode(errors="backslashreplace")  # a file's name may be no Unicode

    def content(self) -> dict[str, Any]:
        """What its file says; sets of earlier versions have no digests, and say nothing of them."""
        return self.model_dump(exclude={"digests"} if self.digests is None else None)


def make_manifest(
    source: dict[str, Any],
    options: dict[str, Any],
    counts: Counts,
    index: IndexFile,
    shards: list[Shard],
    parts: Sequence[Part] = (),
    digests: IndexFile | None = None,
) -> Manifest:
    """The manifest of these parts, its fingerprint filled in."""
    unsigned = Manifest(
        source=source,
        options=options,
        counts=counts,
        index=index,
        digests=digests,
        shards=shards,
        parts=list(parts),
        sha256="0" * 64,
    )
    return unsigned.model_copy(update={"sha256": _fingerprint(unsigned.content())})


def read_manifest(storage: Storage) -> Manifest:
    """The checked manifest of a set.

    Raises:
        UserError: the folder is missing, empty, no shard set, of another version, or its manifest was edited.
    """
    where = join(storage.location, MANIFEST_NAME)
    try:
        content = storage.read(MANIFEST_NAME)
        value = parse_json(content, f"'{where}'", bounded=True)
    except FileNotFoundError:
        raise UserError(f"no shard set at '{storage.location}': {_what_is_there(storage)}; {BUILD_HINT}") from None
    except JsonError as error:
        raise UserError(f"{error}; {BUILD_HINT}") from None
    _check_version(value, where)
    try:
        manifest = Manifest.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "parts"
        raise UserError(f"'{where}' breaks the format at '{field}': {first['msg']}; build the set again") from None
    if manifest.sha256 != _fingerprint(value):
        raise UserError(f"'{where}' was changed after it was written (its sha256 does not fit); build the set again")
    return manifest


def _what_is_there(storage: Storage) -> str:
    if is_remote(storage.location):
        return f"it has no {MANIFEST_NAME}"
    folder = Path(storage.location)
    if not folder.exists():
        return "the folder does not exist" + near_path(folder)
    if not folder.is_dir():
        return "it is not a folder"
    return f"it has no {MANIFEST_NAME}" if any(folder.iterdir()) else "the folder is empty"


def is_shard_set(folder: Path) -> bool:
    """Whether `folder` is a shard set of any version, whole or damaged; what is not one is never overwritten."""
    try:
        value = read_json(folder / MANIFEST_NAME)
    except (OSError, JsonError):
        return False
    return isinstance(value, dict) and value.get("format") == FORMAT


def _check_version(value: Any, where: str) -> None:
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UserError(f'\'{where}\' is not the manifest of a shard set (no "format": "{FORMAT}"); {BUILD_HINT}')
    if value.get("version") != VERSION:
        found = value.get("version")
        raise UserError(f"'{where}' has version {found!r}, this mres reads version {VERSION}; build the set again")


def _fingerprint(value: dict[str, Any]) -> str:
    content = {key: item for key, item in value.items() if key not in ("sha256", "leakcheck")}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


class Tally:
    """Adds up records into `Counts`."""

    def __init__(self) -> None:
        self._numbers: Counter[tuple[str, str, str]] = Counter()  # of (what is counted, granularity, name)

    def add(self, record: ImageRecord) -> None:
        self._numbers.update(_counted(record))

    def remove(self, record: ImageRecord) -> None:
        """Takes back what `add` counted."""
        self._numbers -= Counter(_counted(record))

    @classmethod
    def sum(cls, tallies: Iterable["Tally"]) -> "Tally":
        """What all of them have counted."""
        total = cls()
        for tally in tallies:
            total._numbers += tally._numbers
        return total

    def counts(self, quarantined: int) -> Counts:
        splits = self._table("split", "")
        categories, kinds = ({str(g): self._table(what, g) for g in GRANULARITIES} for what in ("category", "kind"))
        return Counts(
            images=sum(splits.values()),
            targets={g: sum(numbers.values()) for g, numbers in categories.items()},
            expressions={g: sum(numbers.values()) for g, numbers in kinds.items()},
            targets_by_category=categories,
            expressions_by_kind=kinds,
            images_by_split=splits,
            quarantined=quarantined,
        )

    def _table(self, what: str, granularity: str) -> dict[str, int]:
        """{name: number}, sorted."""
        return {name: n for (*key, name), n in sorted(self._numbers.items()) if key == [what, granularity]}

    def to_json(self) -> list[list[Any]]:
        return [[*key, number] for key, number in self._numbers.items()]

    @classmethod
    def from_json(cls, value: list[list[Any]]) -> "Tally":
        tally = cls()
        tally._numbers.update({(what, granularity, name): number for what, granularity, name, number in value})
        return tally


def _counted(record: ImageRecord) -> Iterator[tuple[str, str, str]]:
    yield "split", "", record.split
    for target in record.targets:
        yield "category", target.granularity, target.category
        for expression in target.expressions:
            yield "kind", target.granularity, expression.kind
