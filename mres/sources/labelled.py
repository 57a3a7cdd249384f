"""Images whose regions carry a label: what LabelMe, VIA, Supervisely, VOC and their like come down to, with templates for text.

Shapes: H×W the image.
"""

import argparse
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mres.errors import shown
from mres.records import Expression, Granularity, ImageRecord, RecordError, Rle, Target
from mres.sources.coco_expressions import noun_of
from mres.sources.coco_masks import annotation_mask, share_inside, union
from mres.sources.object_parts import AnnotatedMask, assemble, make_target
from mres.sources.reading import image_size, record_ids
from mres.sources.source import RecordSource

_MAX_FILE_BYTES = 1 << 29
INSIDE = 0.5  # a part belongs to the object that holds most of it, and at least this share


@dataclass(frozen=True)
class Region:
    """One label's, or a piece of it: regions of one label and id are one instance.

    `label` is as the file has it, checked later; `mask` is a mask, or polygons or run lengths as COCO has them.
    `texts` are what people say of it, beside the templates.
    """

    id: str
    label: Any
    mask: Any
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Labelled:
    """An image as annotated: `size` is (height, width) as the annotation says, None where it does not."""

    where: str
    image: bytes
    size: tuple[int, int] | None
    regions: Callable[[int, int], Iterable[Region]]


def labelled_source(
    name: str,
    names: Sequence[str],
    read: Callable[[int], Labelled],
    split: str,
    description: dict[str, Any],
    notes: "Counter[str]",
    targets_of: "Callable[[Sequence[Region], int, int, str, Counter[str]], list[Target]] | None" = None,
) -> RecordSource:
    """One record for each of `names`, file names of which its id is made.

    A label `object:part` is a part; one that begins with "_" is left out.
    """

    ids = record_ids(dict(enumerate(names)), alike=True)

    def make(number: int) -> ImageRecord:
        one = read(number)

        def made(height: int, width: int) -> ImageRecord:
            regions = list(_named(one.regions(height, width), one.where, notes))
            targets = (targets_of or instance_targets)(regions, height, width, one.where, notes)
            if not targets:
                raise RecordError(f"{one.where}: no region with a label has a mask with a pixel")
            return ImageRecord(ids[number], one.image, width, height, split, description["format"], tuple(targets))

        return made(*(one.size or image_size(one.image, one.where)))

    return RecordSource(name, len(names), make, {**description, "split": split}, notes)


def add_split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", default="train", metavar="NAME", help="what the records are labelled as")


def _named(regions: Iterable[Region], where: str, notes: "Counter[str]") -> Iterator[Region]:
    for region in regions:
        if not isinstance(region.label, str) or not all(map(noun_of, region.label.split(":"))):
            raise RecordError(f"{where}: region {region.id}: nothing can be called {shown(region.label)}, its label")
        if region.label.startswith("_"):
            notes["regions whose label begins with '_', left out"] += 1
        else:
            yield region


def instance_targets(
    regions: Sequence[Region], height: int, width: int, where: str, notes: "Counter[str]"
) -> list[Target]:
    """Templated targets of instances and their parts, and one for what people say of a region."""
    masks: dict[tuple[str, str], list[Rle]] = defaultdict(list)
    texts: dict[tuple[str, str], list[str]] = defaultdict(list)
    for region in regions:
        mask = mask_of(region.mask, height, width, f"{where}: region {region.id} ({region.label})", notes)
        if mask is not None:
            masks[region.label, region.id].append(mask)
            texts[region.label, region.id] += region.texts
    found = [_annotated(label, id_, union(pieces), where) for (label, id_), pieces in masks.items()]
    objects = [one for one in found if one.part is None]
    parts = [(one, _owner(one, objects)) for one in found if one.part is not None]
    targets = assemble(objects, parts, notes)
    for one, said in zip(found, texts.values(), strict=True):
        if said:
            category, id_ = one.noun + (f":{one.part}" if one.part else ""), one.annotation["id"]
            kind: Granularity = "object" if one.part is None else "part"
            expressions = tuple(map(Expression, dict.fromkeys(said)))
            targets.append(make_target(f"{category}.{id_}.said", kind, category, one.mask, expressions))
    return targets


def class_targets(
    regions: Sequence[Region], height: int, width: int, where: str, notes: "Counter[str]"
) -> list[Target]:
    """One target for each label: how many instances its region has, nobody said."""
    targets = []
    for region in regions:
        noun = ":".join(map(noun_of, region.label.split(":")))
        said = noun.rpartition(":")[2]
        texts = tuple(Expression(text, "category") for text in (said, f"all of the {said}"))
        targets.append(
            make_target(f"{noun}.{region.id}", "part" if ":" in noun else "object", noun, region.mask, texts)
        )
    return targets


def _annotated(label: str, id_: str, mask: Rle, where: str) -> AnnotatedMask:
    owner, colon, part = label.partition(":")
    return AnnotatedMask({"id": id_}, noun_of(owner), noun_of(part) if colon else None, mask, where, [mask])


def _owner(part: AnnotatedMask, objects: Sequence[AnnotatedMask]) -> str | None:
    shares = {one.annotation["id"]: share_inside(part.mask, one.mask) for one in objects if one.noun == part.noun}
    best = max(shares, key=lambda id_: shares[id_], default=None)
    return best if best is not None and shares[best] >= INSIDE else None


def mask_of(mask: Any, height: int, width: int, where: str, notes: "Counter[str]") -> Rle | None:
    """A region's mask; None, and counted, where it covers no pixel. Raises: RecordError."""
    drawn = mask if isinstance(mask, Rle) else annotation_mask(mask, height, width, where, notes)
    if drawn is None or drawn.is_empty:
        notes["masks that cover no pixel, left out"] += 1
        return None
    return drawn
