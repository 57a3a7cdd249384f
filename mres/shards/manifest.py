"""The manifest of a shard set: what it holds, what it was made from, and the hashes that fix its bytes."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mres.errors import UserError
from mres.records import GRANULARITIES, ImageRecord

FORMAT = "mres-shards"
VERSION = 1
MANIFEST_NAME = "manifest.json"
QUARANTINE_NAME = "quarantine.jsonl"
BUILD_HINT = "make one with `python tools/shard.py build …`"

Sha256 = Field(pattern=r"^[0-9a-f]{64}$")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shard(_Strict):
    """One tar file and its index."""

    name: str = Field(pattern=r"^shard-\d{6,}\.tar$")
    bytes: int = Field(ge=0)
    sha256: str = Sha256
    records: int = Field(ge=1)
    index_sha256: str = Sha256

    @property
    def index_name(self) -> str:
        return self.name.removesuffix(".tar") + ".index.npy"


class Counts(_Strict):
    """How much a set holds; `by_*` are {granularity: {name: number}}."""

    images: int = Field(ge=1)
    targets: dict[str, int]
    expressions: dict[str, int]
    targets_by_category: dict[str, dict[str, int]]
    expressions_by_kind: dict[str, dict[str, int]]
    images_by_split: dict[str, int]
    quarantined: int = Field(0, ge=0)


class Manifest(_Strict):
    """The content of `manifest.json`; `sha256` is the hash of everything else in it and names the set."""

    format: Literal["mres-shards"] = "mres-shards"
    version: Literal[1] = 1
    source: dict[str, Any]
    options: dict[str, Any]
    counts: Counts
    shards: list[Shard] = Field(min_length=1)
    sha256: str = Sha256

    def summary(self) -> str:
        """One line for people."""
        counts = self.counts
        texts = [f"{counts.images} images in {len(self.shards)} shards"]
        texts += [f"{counts.expressions[g]} {g} expressions of {counts.targets[g]} masks" for g in GRANULARITIES]
        if counts.quarantined:
            texts.append(f"{counts.quarantined} bad records left out (listed in {QUARANTINE_NAME})")
        return ", ".join(texts)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self.model_dump(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def make_manifest(source: dict[str, Any], options: dict[str, Any], counts: Counts, shards: list[Shard]) -> Manifest:
    """The manifest of these parts, its fingerprint filled in."""
    unsigned = Manifest(source=source, options=options, counts=counts, shards=shards, sha256="0" * 64)
    return unsigned.model_copy(update={"sha256": _fingerprint(unsigned.model_dump())})


def read_manifest(folder: Path) -> Manifest:
    """The checked manifest of `folder`.

    Raises:
        UserError: `folder` is missing, empty, no shard set, of another version, or its manifest was edited.
    """
    path = folder / MANIFEST_NAME
    if not folder.exists():
        raise UserError(f"no shard set at '{folder}': the folder does not exist; {BUILD_HINT}")
    if not path.is_file():
        what = "it is not a folder" if not folder.is_dir() else f"it has no {MANIFEST_NAME}"
        if folder.is_dir() and not any(folder.iterdir()):
            what = "the folder is empty"
        raise UserError(f"no shard set at '{folder}': {what}; {BUILD_HINT}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read '{path}': {error}; {BUILD_HINT}") from None
    _check_version(value, path)
    try:
        manifest = Manifest.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UserError(f"'{path}' breaks the format at '{field}': {first['msg']}; build the set again") from None
    if manifest.sha256 != _fingerprint(value):
        raise UserError(f"'{path}' was changed after it was written (its sha256 does not fit); build the set again")
    return manifest


def is_shard_set(folder: Path) -> bool:
    """Whether `folder` is a shard set of any version, whole or damaged; what is not one is never overwritten."""
    try:
        value = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("format") == FORMAT


def _check_version(value: Any, path: Path) -> None:
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UserError(f'\'{path}\' is not the manifest of a shard set (no "format": "{FORMAT}"); {BUILD_HINT}')
    if value.get("version") != VERSION:
        found = value.get("version")
        raise UserError(f"'{path}' has version {found!r}, this mres reads version {VERSION}; build the set again")


def _fingerprint(value: dict[str, Any]) -> str:
    content = {key: item for key, item in value.items() if key != "sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


class Tally:
    """Adds up records into `Counts`."""

    def __init__(self) -> None:
        self.images = 0
        self.splits: Counter[str] = Counter()
        self.categories: dict[str, Counter[str]] = {granularity: Counter() for granularity in GRANULARITIES}
        self.kinds: dict[str, Counter[str]] = {granularity: Counter() for granularity in GRANULARITIES}

    def add(self, record: ImageRecord) -> None:
        self.images += 1
        self.splits[record.split] += 1
        for target in record.targets:
            self.categories[target.granularity][target.category] += 1
            self.kinds[target.granularity].update(expression.kind for expression in target.expressions)

    def counts(self, quarantined: int) -> Counts:
        return Counts(
            images=self.images,
            targets={g: self.categories[g].total() for g in GRANULARITIES},
            expressions={g: self.kinds[g].total() for g in GRANULARITIES},
            targets_by_category={g: dict(sorted(self.categories[g].items())) for g in GRANULARITIES},
            expressions_by_kind={g: dict(sorted(self.kinds[g].items())) for g in GRANULARITIES},
            images_by_split=dict(sorted(self.splits.items())),
            quarantined=quarantined,
        )
