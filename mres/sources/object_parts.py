"""Objects with their parts to targets, with expressions that are true of one target of the image only.

Shared by the data sets that name objects and parts but carry no text (PACO, Pascal-Part, COCO instances). What several
instances share is referred to all together; one of them alone only where its position singles it out.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mres.errors import UserError
from mres.records import Expression, Granularity, Rle, Target
from mres.sources.coco_expressions import (
    category_expressions,
    noun_of,
    part_expressions,
    plural,
    position_expressions,
    position_words,
)
from mres.sources.coco_file import Annotation, CocoFile, annotation_mask
from mres.sources.coco_masks import bounding_box, union

Nouns = Mapping[str, tuple[str, str | None]]  # {category's name: (object's noun, part's noun or None)}

_ALONE = "instances that nothing but their group refers to"


@dataclass(frozen=True)
class AnnotatedMask:
    """One annotation with its mask: an object, or a part of one (`part` is not None)."""

    annotation: Annotation
    noun: str
    part: str | None
    mask: Rle
    where: str


@dataclass(frozen=True)
class Instance:
    """One object.

    Attributes:
        id: of its annotation.
        mask: the whole object's.
        is_crowd: the mask is a region of many instances.
        parts: {part's noun: its mask}, an object's parts of one name together.
    """

    id: str
    mask: Rle
    is_crowd: bool = False
    parts: Mapping[str, Rle] = field(default_factory=dict)


def nouns_of(file: CocoFile) -> Nouns:
    """What the categories of a file are called: "car_(automobile):wheel" is ("car", "wheel"), "car" ("car", None).

    Raises:
        UserError: a name of another form.
    """
    nouns = {}
    for name in file.names.values():
        owner, colon, part = name.partition(":")
        nouns[name] = noun_of(owner), noun_of(part) if colon else None
        if "" in nouns[name]:
            raise UserError(f"'{file.path}': the category '{name}' is not of the form 'object' or 'object:part'")
    return nouns


def drop_slivers(file: CocoFile, notes: "Counter[str]") -> None:
    """Leaves out polygons of one or two points, which published files have, and masks of nothing else."""
    for image_id, annotations in file.annotations_of.items():
        for annotation in annotations:
            polygons = annotation.get("segmentation")
            if not isinstance(polygons, list):
                continue
            kept = [p for p in polygons if not isinstance(p, list) or len(p) >= 6]
            if slivers := len(polygons) - len(kept):
                notes["polygons of fewer than three points, left out"] += slivers
                annotation["segmentation"] = kept or None
        drawn = [a for a in annotations if a.get("segmentation", ()) is not None]
        if empty := len(annotations) - len(drawn):
            notes["masks that cover no pixel, left out"] += empty
            file.annotations_of[image_id] = drawn


def drop_unsure(file: CocoFile, nouns: Nouns, notes: "Counter[str]") -> None:
    """Leaves out, with their parts, the objects of which an image may have more that nobody drew: "the chair" might be one."""
    noun_of_id = {id_: nouns[name][0] for id_, name in file.names.items()}
    for image_id, annotations in file.annotations_of.items():
        unsure_ids = file.images[image_id].get("not_exhaustive_category_ids") or ()
        unsure = {noun_of_id[id_] for id_ in unsure_ids if isinstance(id_, int) and id_ in noun_of_id}
        kept = [a for a in annotations if noun_of_id.get(a["category_id"]) not in unsure]
        if left_out := len(annotations) - len(kept):
            notes["annotations of objects of which their image has more, not annotated, left out"] += left_out
            file.annotations_of[image_id] = kept


def object_targets(
    file: CocoFile, nouns: Nouns, notes: "Counter[str]", image_id: Any, height: int, width: int
) -> list[Target]:
    """The targets of an image whose annotations are all objects. Raises: RecordError."""
    return assemble(read_masks(file, nouns, image_id, height, width, notes), [], notes)


def read_masks(
    file: CocoFile, nouns: Nouns, image_id: Any, height: int, width: int, notes: "Counter[str]"
) -> list[AnnotatedMask]:
    """An image's annotations, in the file's order, without those whose mask is empty. Raises: RecordError."""
    found = []
    for annotation in file.annotations_of[image_id]:
        where = file.where(image_id, annotation)
        noun, part = nouns[file.category(annotation, where)]
        mask = annotation_mask(annotation.get("segmentation"), height, width, where, notes)
        if mask is not None:
            found.append(AnnotatedMask(annotation, noun, part, mask, where))
    return found


def assemble(
    objects: Iterable[AnnotatedMask], parts: Iterable[tuple[AnnotatedMask, Any]], notes: "Counter[str]"
) -> list[Target]:
    """The targets of an image.

    Args:
        objects: its objects.
        parts: its parts, each with the annotation id of its object, or None where that is not known.
        notes: where instances are counted that no expression singles out.
    """
    parts_of: dict[Any, dict[str, list[Rle]]] = defaultdict(lambda: defaultdict(list))
    orphans: dict[tuple[str, str], list[Rle]] = defaultdict(list)
    for one, owner in parts:
        assert one.part is not None
        (orphans[one.noun, one.part] if owner is None else parts_of[owner][one.part]).append(one.mask)
    instances: dict[str, list[Instance]] = defaultdict(list)
    for one in objects:
        id_ = one.annotation["id"]
        merged = {part: union(masks) for part, masks in parts_of[id_].items()}
        instances[one.noun].append(Instance(str(id_), one.mask, bool(one.annotation.get("iscrowd")), merged))
    targets: list[Target] = []
    for noun, found in instances.items():
        targets += _objects(noun, found, notes)
    for (noun, part), masks in orphans.items():
        targets += _orphans(noun, part, masks, notes)
    return targets


def _objects(noun: str, instances: Sequence[Instance], notes: "Counter[str]") -> Iterator[Target]:
    """The targets of all instances of one noun, and of their parts."""
    if len(instances) > 1 or instances[0].is_crowd:
        yield from _several(noun, instances, notes)
        return
    (only,) = instances
    yield make_target(noun, "object", noun, only.mask, category_expressions(noun, None, several=False))
    for part, mask in only.parts.items():
        category = f"{noun}:{part}"
        yield make_target(category, "part", category, mask, part_expressions(part, noun), noun)


def _several(noun: str, instances: Sequence[Instance], notes: "Counter[str]") -> Iterator[Target]:
    group = category_expressions(noun, None, several=True)
    yield make_target(noun, "object", noun, union([one.mask for one in instances]), group)
    if any(one.is_crowd for one in instances):  # who stands outermost in it is not known, nor what parts it shows
        notes["groups with a crowd region, referred to as a whole only"] += 1
        return
    yield from _parts_of_all(noun, instances)
    width, boxes = instances[0].mask.width, [bounding_box(one.mask) for one in instances]
    words, texts = position_words(noun, boxes, width), position_expressions(noun, None, boxes, width)
    for index, word in words.items():
        yield from _singled_out(noun, word, instances[index], texts[index])
    if unnamed := len(instances) - len(words):
        notes[_ALONE] += unnamed


def _parts_of_all(noun: str, instances: Sequence[Instance]) -> Iterator[Target]:
    """ "wheels of the cars": only parts that every instance shows, as the others may have some that nobody drew."""
    for part in instances[0].parts:
        if all(part in one.parts for one in instances):
            category = f"{noun}:{part}"
            mask = union([one.parts[part] for one in instances])
            yield make_target(category, "part", category, mask, part_expressions(plural(part), plural(noun)), noun)


def _singled_out(noun: str, word: str, one: Instance, texts: tuple[Expression, ...]) -> Iterator[Target]:
    id_ = f"{noun}.{one.id}"
    yield make_target(id_, "object", noun, one.mask, texts)
    for part, mask in one.parts.items():
        expressions = part_expressions(part, f"{word} {noun}", "position")
        yield make_target(f"{id_}:{part}", "part", f"{noun}:{part}", mask, expressions, id_)


def _orphans(noun: str, part: str, masks: Sequence[Rle], notes: "Counter[str]") -> Iterator[Target]:
    """Parts of one name whose objects are not known: all of them together, and the outermost ones.

    Several are "the person legs": how many people they belong to is not known.
    """
    category, name = f"{noun}:{part}", f"{noun} {part}"
    if len(masks) == 1:
        yield make_target(category, "part", category, masks[0], part_expressions(part, noun))
        return
    texts = (f"the {plural(name)}", plural(name), f"all {plural(name)}")
    yield make_target(category, "part", category, union(masks), tuple(Expression(t, "category") for t in texts))
    found = position_expressions(name, None, [bounding_box(mask) for mask in masks], masks[0].width)
    for index, expressions in found.items():
        yield make_target(f"{category}.{index}", "part", category, masks[index], expressions)
    if unnamed := len(masks) - len(found):
        notes[_ALONE] += unnamed


def make_target(
    id_: str,
    granularity: Granularity,
    category: str,
    mask: Rle,
    expressions: tuple[Expression, ...],
    parent: str | None = None,
) -> Target:
    """A target with the box of its mask."""
    return Target(id_, granularity, category, mask, bounding_box(mask), expressions, parent)
