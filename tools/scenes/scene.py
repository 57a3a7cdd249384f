"""Procedural scenes as image records: each a pure function of (seed, split, index, options)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mres.errors import UserError
from mres.records import Expression, ImageRecord, Rle, Target
from scenes.choice import express
from scenes.expressions import SceneObject
from scenes.layout import Placed, place_objects
from scenes.options import SceneOptions
from scenes.render import DrawnObject, label_map, picture, visible_masks

SOURCE = "scenes"
DEFAULT_OPTIONS = SceneOptions()
MIN_PIXELS = 12 / 128**2  # of the image: smaller parts are no targets
MIN_VISIBLE_PART = 0.5
MIN_VISIBLE_OBJECT = 0.6
MIN_EXPRESSIONS = 10
MAX_ATTEMPTS = 200

Expressions = dict[tuple[str, str | None], list[Expression]]


@dataclass(frozen=True)
class Scene:
    """Everything about a scene but its picture, which is drawn when it is asked for.

    `objects` are all of them, as the expressions see them, also those that no expression singles out.
    """

    drawn: Sequence[DrawnObject]
    objects: Sequence[SceneObject]
    expressions: Expressions
    jpeg: Callable[[], bytes]


def scenes(num_images: int, *, seed: int, split: str, options: SceneOptions = DEFAULT_OPTIONS) -> Iterator[ImageRecord]:
    """The records 0 … num_images - 1 of a procedural data set, drawn one by one as they are asked for."""
    if num_images < 0:
        raise UserError(f"scenes: num_images={num_images}; allowed: 0 or more")
    for index in range(num_images):
        yield scene(index, seed=seed, split=split, options=options)


def scene(index: int, *, seed: int, split: str, options: SceneOptions = DEFAULT_OPTIONS) -> ImageRecord:
    """Record `index` of the procedural data set of (seed, split, options); any record can be drawn alone.

    Its image is a JPEG of options.image_size squared; its masks are what is visible of each object and part.

    Raises:
        UserError: for a negative index or seed, or an empty split.
    """
    found = find_scene(index, seed, split, options)
    return ImageRecord(
        id=f"scenes-{split}-{index:06d}",
        image=found.jpeg(),
        width=options.image_size,
        height=options.image_size,
        split=split,
        source=SOURCE,
        targets=tuple(_targets(found)),
    )


def find_scene(index: int, seed: int, split: str, options: SceneOptions) -> Scene:
    """The first attempt that comes out well."""
    if index < 0 or seed < 0 or not split:
        raise UserError(f"scenes: index={index}, seed={seed}, split={split!r}; allowed: 0 or more, and a name")
    for attempt in range(MAX_ATTEMPTS):
        key = np.random.SeedSequence([seed, int.from_bytes(split.encode(), "big"), index, attempt])
        found = _attempt(np.random.Generator(np.random.Philox(key)), options)
        if found is not None:
            return found
    raise AssertionError(f"no scene within {MAX_ATTEMPTS} attempts")


def _attempt(rng: np.random.Generator, options: SceneOptions) -> Scene | None:
    """A scene, unless objects lack room, one is mostly hidden, or too few expressions single one out."""
    horizon, size = rng.uniform(0.25, 0.45), options.image_size
    placed = place_objects(rng, horizon, options)
    if len(placed) < options.min_objects:
        return None
    labels_DD, exposed = label_map(placed, size)
    drawn = visible_masks(placed, labels_DD, exposed)
    if min(thing.visible for thing in drawn) < MIN_VISIBLE_OBJECT:
        return None
    objects = [_measured(i, *pair, size) for i, pair in enumerate(zip(placed, drawn, strict=True))]
    expressions = express(rng, objects, options.relational_share)
    if sum(map(len, expressions.values())) < MIN_EXPRESSIONS:
        return None
    return Scene(drawn, objects, expressions, partial(picture, rng, placed, labels_DD, horizon))


def _measured(number: int, placed: Placed, drawn: DrawnObject, size: int) -> SceneObject:
    rows, columns = np.flatnonzero(drawn.mask_HW.any(axis=1)), np.flatnonzero(drawn.mask_HW.any(axis=0))
    return SceneObject(
        id=f"{number}-{placed.category}",
        category=placed.category,
        colour=placed.colour,
        left=float(columns[0]) / size,
        top=float(rows[0]) / size,
        right=float(columns[-1] + 1) / size,
        bottom=float(rows[-1] + 1) / size,
        parts=tuple(
            part.name
            for part in drawn.parts
            if part.visible >= MIN_VISIBLE_PART and part.pixels >= MIN_PIXELS * size**2
        ),
    )


def _targets(scene: Scene) -> Iterator[Target]:
    """The objects and parts that have expressions, each object before its parts."""
    named = list(_named_masks(scene))
    rles = coco_mask.encode(np.asfortranarray(np.stack([mask_HW for _, _, mask_HW in named], axis=-1, dtype=np.uint8)))
    boxes = coco_mask.toBbox(rles).tolist()
    for (thing, part, _), rle, box in zip(named, rles, boxes, strict=True):
        height, width = rle["size"]
        noun = part.removeprefix("left ").removeprefix("right ") if part else ""
        yield Target(
            id=f"{thing.id}-{part.replace(' ', '-')}" if part else thing.id,
            granularity="part" if part else "object",
            category=f"{thing.category}:{noun}" if part else thing.category,
            mask=Rle(height, width, rle["counts"]),
            box=tuple(box),
            expressions=tuple(scene.expressions[thing.id, part]),
            parent=thing.id if part else None,
        )


def _named_masks(scene: Scene) -> Iterator[tuple[SceneObject, str | None, NDArray[np.bool_]]]:
    """(object, part or None, mask) of everything that has expressions."""
    for thing, drawn in zip(scene.objects, scene.drawn, strict=True):
        if (thing.id, None) in scene.expressions:
            yield thing, None, drawn.mask_HW
        for part in drawn.parts:
            if (thing.id, part.name) in scene.expressions:
                yield thing, part.name, part.mask_HW
