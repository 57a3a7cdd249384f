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
from mres.sources.coco_file import Annotation, CocoFile
from mres.sources.coco_masks import (
    KEPT_EMPTY,
    LEFT_OUT_BARE,
    LEFT_OUT_EMPTY,
    bounding_box,
    empty_mask,
    has_no_mask,
    piece_masks,
    union,
)
from mres.sources.reading import id_of

Nouns = Mapping[str, tuple[str, str | None]]  # {category's name: (object's noun, part's noun or None)}

_ALONE = "instances that nothing but their group refers to"


@dataclass(frozen=True)
class AnnotatedMask:
    """One annotation with its mask: an object, or a part of one (`part` is not None).

    `pieces` are its polygons or run lengths that cover a pixel; none: the mask is empty.
    """

    annotation: Annotation
    noun: str
    part: str | None
    mask: Rle
    where: str
    pieces: Sequence[Rle]


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


def drop_unsure(file: CocoFile, nouns: Nouns, notes: "Counter[str]") -> None:
    """Leaves out, with their parts, the objects of which an image may have more that nobody drew: "the chair" might be one."""
    noun_of_id = {id_: nouns[name][0] for id_, name in file.names.items()}
    for image_id, annotations in file.annotations_of.items():
        unsure_ids = file.images[image_id].get("not_exhaustive_category_ids")
        listed = map(id_of, unsure_ids if isinstance(unsure_ids, list) else ())
        unsure = {noun_of_id[id_] for id_ in listed if id_ in noun_of_id}
        kept = [a for a in annotations if noun_of_id.get(a["category_id"]) not in unsure]
        if left_out := len(annotations) - len(kept):
            notes["annotations of objects of which their image has more, not annotated, left out"] += left_out
            file.annotations_of[image_id] = kept


@dataclass(frozen=True)
class MaskReader:
    """Reads the annotations of a file's images.

    Args:
        nouns: of the file's categories.
        notes: where what is left out is counted.
        held_out: a mask without a pixel is kept, where no other mask of its image has its name.
    """

    file: CocoFile
    nouns: Nouns
    notes: "Counter[str]"
    held_out: bool

    def targets(self, image_id: Any, height: int, width: int) -> list[Target]:
        """The targets of an image whose annotations are all objects. Raises: RecordError."""
        return assemble(self.masks(image_id, height, width), [], self.notes)

    def masks(self, image_id: Any, height: int, width: int) -> list[AnnotatedMask]:
        """An image's annotations, in the file's order, without those that have no mask. Raises: RecordError."""
        found = []
        for annotation in self.file.annotations_of[image_id]:
            if has_no_mask(segmentation := annotation.get("segmentation")):
                self.notes[LEFT_OUT_BARE] += 1
                continue
            where = self.file.where(image_id, annotation)
            noun, part = self.nouns[self.file.category(annotation, where)]
            pieces = piece_masks(segmentation, height, width, where, self.notes)
            mask = union(pieces) if pieces else empty_mask(height, width)
            found.append(AnnotatedMask(annotation, noun, part, mask, where, pieces))
        return self._without_empty(found)

    def _without_empty(self, found: Sequence[AnnotatedMask]) -> list[AnnotatedMask]:
        named = {(one.noun, one.part) for one in found if one.pieces}
        kept = []
        for one in found:
            if one.pieces:
                kept.append(one)
            elif self.held_out and (one.noun, one.part) not in named:
                named.add((one.noun, one.part))
                kept.append(one)
                self.notes[KEPT_EMPTY] += 1
            else:
                self.notes[LEFT_OUT_EMPTY] += 1
        return kept


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
