"""Derived views: sets that are an index over the shards of other sets, with some or all of their records.

No data is rewritten: a view's folder holds a manifest and an index. It is opened, shuffled, mixed and resumed like any
other set; its fingerprint depends on those of its parts.

Legend: N records of a part, M of them in the view.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mres.errors import UserError
from mres.io.files import write_atomically
from mres.pixels.upright import UPRIGHT
from mres.records import ImageRecord
from mres.shards.digests import DIGESTS_NAME
from mres.shards.index import INDEX_NAME, write_index
from mres.shards.leaks import LEAKS_NAME, inherited, read_leaks
from mres.shards.manifest import MANIFEST_NAME, IndexFile, Manifest, Part, Shard, Tally, make_manifest
from mres.shards.reader import ShardSet
from mres.shards.scan import scan_records
from mres.shards.storage import is_remote
from mres.shards.workspace import check_free, committed


@dataclass(frozen=True)
class Condition:
    """Which records a filter keeps: all that is set must hold.

    Attributes:
        splits: of one of these splits.
        ids: with one of these ids; without_ids: with none of them.
        granularity: with at least one expression of it.
        min_expressions: with at least so many expressions.
        drop_leaks: not on the list of the set's leak check.
    """

    splits: frozenset[str] | None = None
    ids: frozenset[str] | None = None
    without_ids: frozenset[str] | None = None
    granularity: str | None = None
    min_expressions: int = 0
    drop_leaks: bool = False

    def __post_init__(self) -> None:
        if self.min_expressions < 0:
            raise UserError(f"--min-expressions {self.min_expressions}; allowed: 0 and more")

    def describe(self) -> dict[str, Any]:
        """What goes into the manifest."""
        values = {key: value for key, value in vars(self).items() if value}
        return {
            key: sorted(v) if isinstance(v, frozenset) and len(v) <= 100 else _short(v) for key, v in values.items()
        }

    def keeps(self, record: ImageRecord, leaks: frozenset[str]) -> bool:
        """Whether a record is in the view."""
        if self.splits is not None and record.split not in self.splits:
            return False
        if self.ids is not None and record.id not in self.ids:
            return False
        if record.id in leaks or (self.without_ids is not None and record.id in self.without_ids):
            return False
        if self.granularity is not None and all(t.granularity != self.granularity for t in record.targets):
            return False
        return record.num_expressions >= self.min_expressions


def _short(value: Any) -> Any:
    return f"{len(value)} of them" if isinstance(value, frozenset) else value


def filter_set(
    out: Path, location: str, condition: Condition, *, workers: int = 0, overwrite: bool = False
) -> Manifest:
    """Writes the view of the records of one set that fulfil `condition`.

    Raises:
        UserError: no condition, one that keeps nothing, ids or splits that are not there, a leak check that was not
            done, `out` is in use or holds what the view is made of.
    """
    if condition == Condition():
        raise UserError("filter needs a condition, such as --drop-leaks; `filter --help` lists them")
    _refuse_remote(location)
    shards = ShardSet(location)
    _check_out(out, [shards], overwrite=overwrite)
    known = shards.manifest.counts.images_by_split
    if strange := (condition.splits or frozenset()) - known.keys():
        raise UserError(f"'{location}' has no split '{min(strange)}'; it has {', '.join(sorted(known))}")
    leaks = frozenset(leak.id for leak in read_leaks(shards)) if condition.drop_leaks else frozenset[str]()
    scan = _scan(shards, lambda record: condition.keeps(record, leaks), f"filtering {location}", workers)
    for option, ids in (("--ids", condition.ids), ("--without-ids", condition.without_ids)):
        if ids is not None and (strange := ids.difference(scan.ids)):
            raise UserError(
                f"{len(strange)} of the {len(ids)} ids of {option} are not in '{location}': {min(strange)!r} …"
            )
    if not scan.keep_N.any():
        raise UserError(f"no record of '{location}' fulfils {json.dumps(condition.describe())}")
    source = {"format": "view", "filter": condition.describe()}
    return _write_view(out, [(shards, scan)], source, overwrite=overwrite)


def merge_sets(out: Path, locations: Sequence[str], *, workers: int = 0, overwrite: bool = False) -> Manifest:
    """Writes the view of all records of several sets, one after the other.

    Raises:
        UserError: fewer than two sets, an id in two of them, `out` is in use or holds one of them.
    """
    if len(locations) < 2:
        raise UserError("merge needs at least two sets")
    for location in locations:
        _refuse_remote(location)
    sets = [ShardSet(location) for location in locations]
    _check_out(out, sets, overwrite=overwrite)
    seen, parts = dict[str, str](), []
    for location, shards in zip(locations, sets, strict=True):
        scan = _scan(shards, lambda record: True, f"reading {location}", workers)
        for record_id in scan.ids:
            if record_id in seen:
                raise UserError(
                    f"record {record_id!r} is in '{seen[record_id]}' and in '{location}', and a set has an id once; leave "
                    "it out of one (filter --without-ids), or train on both sets side by side (data.train: [{path: …}, …])"
                )
            seen[record_id] = location
        parts.append((shards, scan))
    return _write_view(out, parts, {"format": "view", "merge": len(parts)}, overwrite=overwrite)


def _refuse_remote(location: str) -> None:
    if is_remote(location):
        raise UserError(
            f"views are made of local sets, and '{location}' is not; copy it, or make the view where it lies"
        )


@dataclass(frozen=True)
class _Scan:
    """What reading the annotations of all records gives; `tally` counts those that are kept."""

    keep_N: np.ndarray
    ids: list[str]
    tally: Tally

    def kept_ids(self) -> frozenset[str]:
        return frozenset(record_id for record_id, kept in zip(self.ids, self.keep_N, strict=True) if kept)


def _scan(shards: ShardSet, keeps: Callable[[ImageRecord], bool], label: str, workers: int) -> _Scan:
    def read(positions: Iterator[int]) -> tuple[list[bool], list[str], Tally]:
        kept, ids, tally = [], [], Tally()
        for position in positions:
            record = shards.annotations(position)
            kept.append(keeps(record))
            ids.append(record.id)
            if kept[-1]:
                tally.add(record)
        return kept, ids, tally

    chunks = scan_records(shards, read, workers=workers, label=label)
    keep_N = np.array([keep for kept, _, _ in chunks for keep in kept], bool)
    ids = [record_id for _, own, _ in chunks for record_id in own]
    return _Scan(keep_N, ids, Tally.sum(tally for _, _, tally in chunks))


def _write_view(
    out: Path,
    chosen: Sequence[tuple[ShardSet, _Scan]],
    source: dict[str, Any],
    *,
    overwrite: bool,
) -> Manifest:
    plan = {**source, "of": [whole.fingerprint for whole, _ in chosen]}
    with committed(out, plan, overwrite=overwrite) as folder:
        parts, shards, indices = _parts(out.resolve(), chosen)
        write_index(folder / INDEX_NAME, np.concatenate(indices))
        digests = _write_digests(folder / DIGESTS_NAME, chosen)
        quarantined = sum(s.manifest.counts.quarantined for s, _ in chosen)
        tally = Tally.sum(scan.tally for _, scan in chosen)
        options = UPRIGHT if all(whole.manifest.is_upright for whole, _ in chosen) else {}
        manifest = make_manifest(
            source, options, tally.counts(quarantined), IndexFile.of(folder / INDEX_NAME), shards, parts, digests
        )
        leaks = inherited([(whole, scan.kept_ids()) for whole, scan in chosen])
        if leaks is not None:
            manifest = manifest.model_copy(update={"leakcheck": leaks[0]})
            write_atomically(folder / LEAKS_NAME, leaks[1])
        write_atomically(folder / MANIFEST_NAME, manifest.to_bytes())
    return manifest


def _write_digests(path: Path, chosen: Sequence[tuple[ShardSet, _Scan]]) -> IndexFile | None:
    """Those of the records that are kept, where all sets have them; rows of an index come shard by shard, as they are."""
    found = [None if s.digests_N32 is None else s.digests_N32[scan.keep_N] for s, scan in chosen]
    kept = [digests for digests in found if digests is not None]
    if len(kept) < len(found):
        return None
    write_index(path, np.concatenate(kept))
    return IndexFile.of(path)


def _check_out(out: Path, sets: Sequence[ShardSet], *, overwrite: bool) -> None:
    """Before anything is read: --overwrite must not remove the data that the view shows."""
    for location in (storage.location for shards in sets for storage in shards.storages):
        if out.resolve() in (folder := Path(location).resolve(), *folder.parents):
            raise UserError(f"the view cannot replace '{out}', whose records it shows; give it another folder")
    check_free(out, overwrite=overwrite)


def _parts(out: Path, chosen: Sequence[tuple[ShardSet, _Scan]]) -> tuple[list[Part], list[Shard], list[np.ndarray]]:
    """Parts, shards and index rows of a view; a view of views names the sets in which the files really lie."""
    parts: list[Part] = []
    shards: list[Shard] = []
    indices: list[np.ndarray] = []
    for whole, scan in chosen:
        rows_M = np.array(whole.index_N[scan.keep_N])
        own = {storage.location: None for storage in whole.storages}
        prints = dict(zip(own, [whole.fingerprint, *(p.sha256 for p in whole.manifest.parts)], strict=True))
        for number in np.unique(rows_M["shard"]):
            shard = whole.manifest.shards[int(number)]
            location = whole.storage_of(shard).location
            part = Part(folder=os.path.relpath(Path(location).resolve(), out), sha256=prints[location])
            if part not in parts:
                parts.append(part)
            rows = rows_M[rows_M["shard"] == number]
            rows["shard"] = len(shards)
            indices.append(rows)
            shards.append(shard.model_copy(update={"records": len(rows), "part": parts.index(part)}))
    return parts, shards, indices
