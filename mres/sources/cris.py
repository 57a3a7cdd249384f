"""CRIS's JSON (`anns/<data set>/<split>.json`, `masks/<data set>/<segment id>.png`) to image records."""

import argparse
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from mres.records import RecordError
from mres.sources.cris_tables import EntryFile, Segment, check_count, file_source, read_segment
from mres.sources.reading import add_paths
from mres.sources.refer_counts import PUBLISHED
from mres.sources.source import RecordSource


def cris(annotations: Path, masks: Path, images: Path, *, split: str | None = None) -> RecordSource:
    """The image records of one split.

    Args:
        annotations: the split's JSON.
        masks: the folder with `<segment_id>.png` of this data set.
        images: the folder of the images (COCO's train2014).
        split: what the records are labelled as; None: the name of the JSON.

    Raises:
        UserError: a file or folder that is not there or not of this form. What is wrong with one entry comes out of the
            iteration as a `RecordError`, first.
    """
    file = EntryFile.read(annotations)
    notes: Counter[str] = Counter()
    parsed = file.segments(lambda number, entry, where: _segment(number, entry, where, notes))
    data_set = annotations.resolve().parent.name
    published = [
        of_set[annotations.stem].refs
        for (name, _), of_set in PUBLISHED.items()
        if name == data_set and annotations.stem in of_set
    ]
    if published and len(file.entries) not in published:
        numbers = " or ".join(map(str, published))
        notes[f"entries of {data_set} {annotations.stem}, where {numbers} were published"] = len(file.entries)
    return file_source(
        file,
        parsed,
        masks,
        images,
        split=split or annotations.stem,
        source=f"{data_set} (cris)",
        description={"format": "cris"},
        notes=notes,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_paths(
        parser,
        ("--annotations", "FILE", "the JSON of a split, anns/<data set>/<split>.json"),
        ("--masks", "DIR", "the folder of this data set's masks, <segment id>.png"),
        ("--images", "DIR", "the folder of the images (COCO's train2014)"),
    )
    parser.add_argument("--split", metavar="NAME", help="what the records are labelled as; the JSON's name by default")


def _segment(number: int, entry: dict[str, Any], where: str, notes: "Counter[str]") -> Segment:
    found = replace(read_segment(number, entry, where, notes), box=_box(entry.get("bbox"), where))
    check_count(entry.get("sentences_num"), entry["sentences"], where, "sentences_num")
    return found


def _box(value: Any, where: str) -> tuple[float, float, float, float] | None:
    if value is None:
        return None
    is_box = isinstance(value, list) and len(value) == 4 and all(isinstance(v, int | float) for v in value)
    if not is_box or not all(map(math.isfinite, value)):
        raise RecordError(f"{where}: field 'bbox': found {value!r}, expected [x1, y1, x2, y2]")
    x1, y1, x2, y2 = value
    return (x1, y1, x2, y2)
