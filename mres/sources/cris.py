"""CRIS's JSON (`anns/<data set>/<split>.json`, `masks/<data set>/<segment id>.png`) to image records."""

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from mres.errors import shown
from mres.records import RecordError
from mres.sources.cris_files import EntryFile, file_source
from mres.sources.cris_tables import Segment, check_count, read_segment
from mres.sources.reading import add_paths
from mres.sources.refer_counts import published_check
from mres.sources.source import RecordSource

_FARTHEST = 1e9  # pixels; JSON's numbers may be infinite, or larger than any float


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
    return file_source(
        file,
        parsed,
        masks,
        images,
        split=split or annotations.stem,
        source=f"{data_set} (cris)",
        description={"format": "cris"},
        notes=notes,
        check_kept=published_check(annotations, notes),
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
    found = read_segment(number, entry, where, notes)
    found = replace(found, box=_box(entry.get("bbox"), where), ref_id=entry["segment_id"])
    check_count(entry.get("sentences_num"), entry["sentences"], where, "sentences_num")
    return found


def _box(value: Any, where: str) -> tuple[float, float, float, float] | None:
    if value is None:
        return None
    is_box = isinstance(value, list) and len(value) == 4 and all(isinstance(v, int | float) for v in value)
    if not is_box or not all(-_FARTHEST <= v <= _FARTHEST for v in value):
        raise RecordError(f"{where}: field 'bbox': found {shown(value)}, expected [x1, y1, x2, y2] in pixels")
    x1, y1, x2, y2 = value
    return (x1, y1, x2, y2)
