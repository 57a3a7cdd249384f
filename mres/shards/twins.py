"""Records of a new set whose id an earlier one has: only the index leaves them out, their bytes stay in the shard.

Legend: N records.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mres.errors import shown
from mres.records import ImageRecord
from mres.shards.manifest import Shard, Tally
from mres.shards.reader import parse_record
from mres.sources.source import RecordSource


def find_twins(ids: Iterable[str]) -> dict[int, tuple[int, str]]:
    """Records with the id of an earlier one: {row of the index: (row of that, id)}. Only the index leaves them out."""
    seen: dict[str, int] = {}
    twins: dict[int, tuple[int, str]] = {}
    for row, record_id in enumerate(ids):
        if (first := seen.setdefault(record_id, row)) != row:
            twins[row] = first, record_id
    return twins


def without_twins(
    source: RecordSource,
    folder: Path,
    index_N: np.ndarray,
    shards: list[Shard],
    tally: Tally,
    twins: dict[int, tuple[int, str]],
) -> tuple[np.ndarray, list[str]]:
    """The index without them (the tally, too), and what is to be said of them."""
    errors = []
    for row, (first, record_id) in twins.items():
        tally.remove(_written(folder / shards[int(index_N[row]["shard"])].name, index_N[row]))
        place, before = (source.place(int(index_N[r]["key"])) for r in (row, first))
        twice = f"its id occurs twice, before at {before}; ids must be unique"
        errors.append(f"{place}: record {shown(record_id)}: {twice}")
    return np.delete(index_N, list(twins)), errors


def _written(path: Path, row: np.void) -> ImageRecord:
    with path.open("rb") as file:
        file.seek(int(row["offset"]))
        return parse_record(file.read(int(row["size"])), row, str(path))
