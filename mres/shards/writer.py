"""Writes a source as a shard set: shard by shard in parallel, taken up again after a kill, committed by one rename.

A shard is made of a fixed run of the source's records, so neither the number of processes nor an interruption changes
a byte. What is finished lies in `<out>.incomplete/result`, each shard with its index and a description beside it.
"""

import json
import sys
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mres.errors import UserError
from mres.io.files import file_sha256, fsync, remove, write_atomically
from mres.io.json_files import MAX_TABLE_BYTES, read_json
from mres.io.processes import Ticks, spread
from mres.io.progress import track_count
from mres.records import GRANULARITIES, ImageRecord, RecordError
from mres.shards.budget import Budget, TooManyBadError, bounded, check_empty_masks
from mres.shards.check import check_record
from mres.shards.digests import DIGESTS_NAME, keep_digests, kept_digests
from mres.shards.index import INDEX_DTYPE, INDEX_NAME, write_index
from mres.shards.manifest import MANIFEST_NAME, QUARANTINE_NAME, IndexFile, Manifest, Shard, Tally, make_manifest
from mres.shards.mds import MDS_INDEX_NAME, MdsShard, write_mds_index
from mres.shards.options import WriteOptions as WriteOptions
from mres.shards.resize import shrink_record
from mres.shards.tar import TarShard
from mres.shards.twins import find_twins, without_twins
from mres.shards.workspace import PIECES, committed
from mres.sources.source import NothingLeftError, RecordSource

_SHOWN_REASONS = 3
_LAYOUTS: dict[str, type[TarShard] | type[MdsShard]] = {"tar": TarShard, "mds": MdsShard}


def write_shards(source: RecordSource, out: Path, options: WriteOptions | None = None) -> Manifest:
    """Writes the records of `source` into the new folder `out`.

    Each record is checked against the format and its image is decoded, so that what was written can be trained on. The
    same records give the same bytes. Finished shards of an interrupted build of the same source and options are kept
    and not made again.

    Raises:
        UserError: `out` is in use, no good record came, more bad ones or empty masks than allowed, an id occurs twice,
            the disk is full, a worker died.
    """
    options = options or WriteOptions()
    source = replace(source, frame=options.orientation)
    kept = {key: value for key, value in options.of_manifest().items() if key != "max_bad_fraction"}
    plan = {"source": source.description, "total": len(source), "options": kept}
    with committed(out, plan, overwrite=options.overwrite) as folder:
        try:
            results = _write_all(source, folder, options, label=f"writing {out}")
            return _assemble(source, folder, options, results)
        except TooManyBadError:
            _forget_bad(folder)
            raise


@dataclass
class _ShardResult:
    """A finished shard, or, where all its records are bad, only the list of these; `empty` are masks that nobody meant so."""

    shard: Shard | None
    ids: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    tally: Tally = field(default_factory=Tally)
    empty: int = 0

    def write(self, path: Path) -> None:
        value = {
            "shard": self.shard.model_dump() if self.shard else None,
            "ids": self.ids,
            "errors": self.errors,
            "notes": self.notes,
            "tally": self.tally.to_json(),
            "empty": self.empty,
        }
        write_atomically(path, json.dumps(value).encode())

    @classmethod
    def read(cls, path: Path) -> "_ShardResult":
        value = read_json(path, max_bytes=MAX_TABLE_BYTES)
        shard = Shard.model_validate(value["shard"]) if value["shard"] else None
        tally = Tally.from_json(value["tally"])
        return cls(shard, value["ids"], value["errors"], Counter(value["notes"]), tally, value.get("empty", 0))


def _result_path(folder: Path, number: int) -> Path:
    return folder / f"piece-{number:06d}.json"


def _index_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.index.npy"


def _write_all(source: RecordSource, folder: Path, options: WriteOptions, label: str) -> list[_ShardResult]:
    """Makes the shards that are not there yet; stops when more records are bad than may be."""
    count = -(-len(source) // options.images_per_shard)
    finished = {n: _ShardResult.read(_result_path(folder, n)) for n in range(count) if _result_path(folder, n).exists()}
    results = dict(finished)
    known = Counter(source.notes)
    budget = Budget(len(source), options.max_bad_fraction)
    ticks = Ticks()
    todo = [n for n in range(count) if n not in finished]
    done_before = sum(len(result.ids) + len(result.errors) for result in finished.values())
    if finished:
        print(f"going on: {len(finished)} of {count} shards are finished", file=sys.stderr)
    for number, result in finished.items():
        budget.add(number, result.errors, done_before)

    def make(number: int) -> _ShardResult:
        return _write_shard(source, folder, options, number, ticks)

    if options.workers:
        _import_writer(options.layout)
    with closing(spread(make, todo, options.workers)) as made_results:  # nobody is at work behind what is raised
        for made in track_count(made_results, lambda: done_before + ticks.count, len(source), label):
            if made is not None:
                results[made[0]] = made[1]
                budget.add(made[0], made[1].errors, done_before + ticks.count)
    budget.check()
    source.notes.clear()  # what this process has seen of them is in the results, as what others and earlier builds have
    source.notes.update(known)
    for result in results.values():
        source.notes.update(result.notes)
    return [results[n] for n in range(count)]


def _import_writer(layout: str) -> None:
    """Once here, instead of once in each process that is forked."""
    if layout == "tar":
        import webdataset  # noqa: F401
    else:
        import streaming  # noqa: F401


def _forget_bad(folder: Path) -> None:
    """Bad records are made again by the next build: what was wrong with them may have been repaired."""
    for path in folder.glob(PIECES):
        if _ShardResult.read(path).errors:
            path.unlink()


def _write_shard(source: RecordSource, folder: Path, options: WriteOptions, number: int, ticks: Ticks) -> _ShardResult:
    """Makes one shard with its index; its description, written last, says that it is finished."""
    first = number * options.images_per_shard
    layout = _LAYOUTS[options.layout]
    path = folder / f"shard-{number:06d}{layout.suffix}"
    result, before, shard = _ShardResult(None), Counter(source.notes), None
    keys, expressions = list[int](), list[list[int]]()
    try:
        for item in range(first, min(len(source), first + options.images_per_shard)):
            ticks.tick()
            try:
                record, suffix = _checked(source, item, options)
            except NothingLeftError:
                continue
            except RecordError as error:
                result.errors.append(bounded(error))
                continue
            finally:
                result.errors += map(bounded, source.refused)
                source.refused.clear()
            if shard is None:  # opened only once there is a record for it
                shard = layout(path)
            shard.add(item, record, suffix)
            keys.append(item)
            expressions.append(_expression_counts(record))
            result.ids.append(record.id)
            result.empty += sum(target.mask.is_empty and not target.no_target for target in record.targets)
            result.tally.add(record)
    finally:
        if shard is not None:
            shard.close()
    if shard is not None:
        fsync(path)  # a description that outlives a power failure must not be of a shard that does not
        write_index(_index_path(folder, path.name), index_N := shard.index(keys, np.array(expressions, np.int32)))
        keep_digests(path, index_N)
        result.shard = Shard(
            name=path.name, bytes=path.stat().st_size, sha256=file_sha256(path), records=len(result.ids)
        )
    result.notes = Counter(source.notes) - before
    result.write(_result_path(folder, number))
    return result


def _expression_counts(record: ImageRecord) -> list[int]:
    """How many expressions of objects and of parts a record has."""
    return [sum(len(t.expressions) for t in record.targets if t.granularity == g) for g in GRANULARITIES]


def _checked(source: RecordSource, item: int, options: WriteOptions) -> tuple[ImageRecord, str]:
    """Record `item`, checked and as small as asked for, and the suffix of its image."""
    record = source[item]
    suffix = check_record(record, source.name)
    if options.max_side is not None and max(record.width, record.height) > options.max_side:
        return shrink_record(record, options.max_side, options.quality), "jpg"
    return record, suffix


def _reasons(source: RecordSource, errors: list[str]) -> str:
    """The first of what was wrong, and of what was left out, for a message."""
    found = errors[:_SHOWN_REASONS] + [
        f"{note}: {number:,}" for note, number in source.notes.most_common(_SHOWN_REASONS)
    ]
    return (found and ":\n  " + "\n  ".join(found)) or ""


def _assemble(source: RecordSource, folder: Path, options: WriteOptions, results: list[_ShardResult]) -> Manifest:
    """Index, quarantine list and manifest of the finished shards."""
    index_N, digests_N32 = _join(folder, results)
    tally, errors = Tally.sum(r.tally for r in results), [error for result in results for error in result.errors]
    shards = [result.shard for result in results if result.shard]
    if twins := find_twins(record_id for result in results for record_id in result.ids):
        index_N, twin_errors = without_twins(source, folder, index_N, shards, tally, twins)
        digests_N32 = np.delete(digests_N32, list(twins), axis=0)
        budget = Budget(len(source), options.max_bad_fraction)
        budget.add(0, errors := errors + twin_errors, len(source))
        budget.check()
    if not len(index_N):
        raise UserError(
            f"no good record came from {source.name}, so there is nothing to write{_reasons(source, errors)}"
        )
    counts = np.bincount(index_N["shard"], minlength=len(shards))
    shards = [shard.model_copy(update={"records": int(n)}) for shard, n in zip(shards, counts, strict=True)]
    write_index(folder / INDEX_NAME, index_N)
    write_index(folder / DIGESTS_NAME, digests_N32)
    kept = {MANIFEST_NAME, INDEX_NAME, DIGESTS_NAME, *(shard.name for shard in shards)}
    if errors:
        kept.add(QUARANTINE_NAME)
        lines = [json.dumps({"error": error}, ensure_ascii=False) + "\n" for error in errors]
        write_atomically(folder / QUARANTINE_NAME, "".join(lines).encode(errors="backslashreplace"))
    if options.layout == "mds":
        kept.add(MDS_INDEX_NAME)
        write_mds_index(folder, [shard.name for shard in shards])
    index, digests = (IndexFile.of(folder / name) for name in (INDEX_NAME, DIGESTS_NAME))
    counts_of_set = tally.counts(len(errors))
    masks, expressions = (sum(of.values()) for of in (counts_of_set.targets, counts_of_set.expressions))
    check_empty_masks(sum(result.empty for result in results), masks, options.max_empty_fraction)
    source.check_kept(masks, expressions)
    about = {**source.description, "notes": dict(sorted(source.notes.items()))} if source.notes else source.description
    manifest = make_manifest(about, options.of_manifest(), counts_of_set, index, shards, digests=digests)
    write_atomically(folder / MANIFEST_NAME, manifest.to_bytes())
    _tidy(folder, kept)
    return manifest


def _join(folder: Path, results: list[_ShardResult]) -> tuple[np.ndarray, np.ndarray]:
    """The index of all finished shards (N,), and the digests of their records (N, 32)."""
    parts, digests = [np.zeros(0, INDEX_DTYPE)], [np.zeros((0, 32), np.uint8)]
    for number, shard in enumerate(result.shard for result in results if result.shard):
        parts.append(np.load(_index_path(folder, shard.name), allow_pickle=False))
        parts[-1]["shard"] = number
        digests.append(kept_digests(folder / shard.name, parts[-1]))
    return np.concatenate(parts), np.concatenate(digests)


def _tidy(folder: Path, kept: set[str]) -> None:
    """Removes what only a build needs, and what killed ones left; the results first: without its own, a shard counts as not made."""
    for path in sorted(folder.iterdir(), key=lambda path: not path.match(PIECES)):
        if path.name not in kept:
            remove(path)
