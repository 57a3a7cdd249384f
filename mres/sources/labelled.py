"""Images whose regions carry a label: what LabelMe, VIA, Supervisely, VOC and their like come down to, with templates for text.

Shapes: H×W the image.
"""

import argparse
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mres.errors import shown
from mres.records import Expression, Granularity, ImageRecord, RecordError, Rle, Target
from mres.sources.coco_expressions import noun_of
from mres.sources.coco_masks import (
    KEPT_EMPTY,
    LEFT_OUT_EMPTY,
    annotation_mask,
    empty_mask,
    is_held_out,
    share_inside,
    union,
)
from mres.sources.object_parts import AnnotatedMask, assemble, make_target
from mres.sources.reading import record_ids
from mres.sources.source import NothingLeftError, RecordSource, Undrawn

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
class Drawn:
    """An instance with its mask; `id` is unique in its image."""

    id: str
    label: str
    mask: Rle
    texts: tuple[str, ...] = ()

    @property
    def nouns(self) -> list[str]:
        """What the object is called, and of a part then the part."""
        return [noun_of(name) for name in self.label.split(":", 1)]

    @property
    def category(self) -> str:
        return ":".join(self.nouns)

    @property
    def granularity(self) -> Granularity:
        return "part" if ":" in self.label else "object"


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
    targets_of: "Callable[[Sequence[Drawn], Counter[str]], list[Target]] | None" = None,
) -> RecordSource:
    """One record for each of `names`, file names of which its id is made.

    A label `object:part` is a part; one that begins with "_" is left out. In a held-out split a label without a pixel is
    kept, as an empty truth.
    """
    targets_of = targets_of or instance_targets
    ids = record_ids(dict(enumerate(names)), alike=True)

    def make(number: int) -> Undrawn:
        one = read(number)

        def made(height: int, width: int) -> ImageRecord:
            regions = list(_named(one.regions(height, width), one.where, notes))
            drawn = _drawn(regions, height, width, one.where, is_held_out(split), notes)
            targets = targets_of(drawn, notes)
            if not targets:
                notes["images without a region that has a label and a pixel, left out"] += 1
                raise NothingLeftError(f"{one.where}: no region has a label and a pixel")
            return ImageRecord(ids[number], one.image, width, height, split, description["format"], tuple(targets))

        return Undrawn(one.where, one.image, made, one.size)

    return RecordSource(name, len(names), make, {**description, "split": split}, notes)


def add_split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", default="train", metavar="NAME", help="what the records are labelled as")


def _named(regions: Iterable[Region], where: str, notes: "Counter[str]") -> Iterator[Region]:
    for region in regions:
        if not isinstance(region.label, str) or not all(map(noun_of, region.label.split(":", 1))):
            raise RecordError(f"{where}: region {region.id}: nothing can be called {shown(region.label)}, its label")
        if region.label.startswith("_"):
            notes["regions whose label begins with '_', left out"] += 1
        else:
            yield region


def _drawn(
    regions: Sequence[Region], height: int, width: int, where: str, held_out: bool, notes: "Counter[str]"
) -> list[Drawn]:
    """The instances: regions of one label and id together, without those that have no pixel. Raises: RecordError."""
    pieces: dict[tuple[str, str], list[Rle]] = defaultdict(list)
    texts: dict[tuple[str, str], list[str]] = defaultdict(list)
    for region in regions:
        place = f"{where}: region {region.id} ({region.label})"
        mask = (
            region.mask if isinstance(region.mask, Rle) else annotation_mask(region.mask, height, width, place, notes)
        )
        pieces[region.label, region.id] += [mask] if mask is not None and not mask.is_empty else []
        texts[region.label, region.id] += region.texts
    named = {label for (label, _), masks in pieces.items() if masks}
    found = []
    for number, ((label, id_), masks) in enumerate(pieces.items()):
        unique = id_ if [other for _, other in pieces].count(id_) == 1 else f"{id_}-{number}"
        if masks:
            found.append(Drawn(unique, label, union(masks), tuple(dict.fromkeys(texts[label, id_]))))
        elif held_out and label not in named:
            named.add(label)
            notes[KEPT_EMPTY] += 1
            found.append(Drawn(unique, label, empty_mask(height, width)))
        else:
            notes[LEFT_OUT_EMPTY] += 1
    return found


def instance_targets(instances: Sequence[Drawn], notes: "Counter[str]") -> list[Target]:
    """Templated targets of instances and their parts, with what people say of them."""
    found = [_annotated(one) for one in instances]
    objects = [one for one in found if one.part is None]
    parts = [(one, _owner(one, objects)) for one in found if one.part is not None]
    targets = assemble(objects, parts, notes)
    drawn, owners = {one.id: one for one in instances}, {one.annotation["id"]: owner for one, owner in parts}
    for one in sorted(instances, key=lambda one: one.granularity == "part"):  # objects first: parts name them
        owner = owners.get(one.id)
        _add_texts(one, drawn[owner] if owner is not None else None, targets)
    return targets


def _add_texts(one: Drawn, owner: Drawn | None, targets: list[Target]) -> None:
    """Adds an instance's texts to its target; where no template singles it out, it gets one of its own."""
    place = _place(one, targets)
    known = {expression.text for expression in targets[place].expressions} if place is not None else set[str]()
    expressions = tuple(Expression(text) for text in one.texts if text not in known)
    if not expressions:
        return
    if place is not None:
        targets[place] = replace(targets[place], expressions=targets[place].expressions + expressions)
        return
    parent = _place(owner, targets) if owner is not None else None
    id_, parent_id = f"{one.category}.{one.id}.said", targets[parent].id if parent is not None else None
    targets.append(make_target(id_, one.granularity, one.category, one.mask, expressions, parent_id))


def _place(one: Drawn, targets: Sequence[Target]) -> int | None:
    """Which target is of this instance alone."""
    found = (n for n, target in enumerate(targets) if (target.category, target.mask) == (one.category, one.mask))
    return max(found, default=None)


def class_targets(instances: Sequence[Drawn], notes: "Counter[str]") -> list[Target]:
    """One target for each category: how many instances its region has, nobody said. Labels that are one in words are one."""
    alike: dict[str, list[Drawn]] = defaultdict(list)
    for one in instances:
        alike[one.category].append(one)
    targets, last = [], Counter(category.rpartition(":")[2] for category in alike)
    for category, (one, *others) in alike.items():
        if others:
            notes["labels that have their name in common with another of their image, one mask with it"] += len(others)
        said = one.nouns[-1]
        if last[said] > 1:  # the wheel of what?
            said = " of the ".join(one.nouns[::-1])
        texts = tuple(Expression(text, "category") for text in (said, f"all of the {said}"))
        mask = union([one.mask, *(other.mask for other in others)])
        targets.append(make_target(f"{category}.{one.id}", one.granularity, category, mask, texts))
    return targets


def _annotated(one: Drawn) -> AnnotatedMask:
    noun, *part = one.nouns
    return AnnotatedMask({"id": one.id}, noun, part[0] if part else None, one.mask, "", [one.mask])


def _owner(part: AnnotatedMask, objects: Sequence[AnnotatedMask]) -> str | None:
    shares = {one.annotation["id"]: share_inside(part.mask, one.mask) for one in objects if one.noun == part.noun}
    best = max(shares, key=lambda id_: shares[id_], default=None)
    return best if best is not None and shares[best] >= INSIDE else None
