"""Procedural scenes as image records: each a pure function of (seed, split, index, options)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mres.errors import UserError
from mres.records import Expression, Granularity, ImageRecord, Rle, Target
from mres.sources.scenes.choice import express
from mres.sources.scenes.expressions import SceneObject
from mres.sources.scenes.layout import Placed, place_objects
from mres.sources.scenes.options import SceneOptions
from mres.sources.scenes.render import DrawnObject, label_map, picture, visible_masks

SOURCE = "scenes"
MIN_PIXELS = 12 / 128**2  # of the image: smaller parts are no targets
MIN_VISIBLE_PART = 0.5
MIN_VISIBLE_OBJECT = 0.6
MIN_EXPRESSIONS = 12
MAX_ATTEMPTS = 200


Expressions = dict[tuple[str, str | None], list[Expression]]


@dataclass(frozen=True)
class _Scene:
    jpeg: bytes
    drawn: Sequence[DrawnObject]
    objects: Sequence[SceneObject]
    expressions: Expressions


def scenes(
    num_images: int,
    *,
    seed: int,
    split: str,
    options: SceneOptions = SceneOptions(),  # noqa: B008 (frozen)
) -> Iterator[ImageRecord]:
    """The records 0 … num_images - 1 of a procedural data set, drawn one by one as they are asked for."""
    if num_images < 0:
        raise UserError(f"scenes: num_images={num_images}; allowed: 0 or more")
    for index in range(num_images):
        yield scene(index, seed=seed, split=split, options=options)


def scene(index: int, *, seed: int, split: str, options: SceneOptions = SceneOptions()) -> ImageRecord:  # noqa: B008
    """Record `index` of the procedural data set of (seed, split, options); any record can be drawn alone.

    Its image is a JPEG of options.image_size squared; its masks are what is visible of each object and part.

    Raises:
        UserError: for a negative index or seed, or an empty split.
    """
    drawn = _draw_scene(index, seed, split, options)
    return ImageRecord(
        id=f"scenes-{split}-{index:06d}",
        image=drawn.jpeg,
        width=options.image_size,
        height=options.image_size,
        split=split,
        source=SOURCE,
        targets=tuple(_targets(drawn)),
    )


def scene_objects(
    index: int,
    *,
    seed: int,
    split: str,
    options: SceneOptions = SceneOptions(),  # noqa: B008
) -> tuple[SceneObject, ...]:
    """All objects of scene `index`, as the expressions see them, also those that no expression singles out."""
    return tuple(_draw_scene(index, seed, split, options).objects)


def _draw_scene(index: int, seed: int, split: str, options: SceneOptions) -> _Scene:
    """The first attempt that comes out well."""
    if index < 0 or seed < 0 or not split:
        raise UserError(f"scenes: index={index}, seed={seed}, split={split!r}; allowed: 0 or more, and a name")
    for attempt in range(MAX_ATTEMPTS):
        key = np.random.SeedSequence([seed, int.from_bytes(split.encode(), "big"), index, attempt])
        found = _attempt(np.random.Generator(np.random.Philox(key)), options)
        if found is not None:
            return found
    raise AssertionError(f"no scene within {MAX_ATTEMPTS} attempts")


def _attempt(rng: np.random.Generator, options: SceneOptions) -> _Scene | None:
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
    return _Scene(picture(rng, placed, labels_DD, horizon), drawn, objects, expressions)


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
            if part.visible >= MIN_VISIBLE_PART and part.mask_HW.sum() >= MIN_PIXELS * size**2
        ),
    )


def _targets(scene: _Scene) -> Iterator[Target]:
    masks: list[NDArray[np.bool_]] = []
    heads: list[tuple[str, Granularity, str, str | None, tuple[Expression, ...]]] = []
    for thing, drawn in zip(scene.objects, scene.drawn, strict=True):
        if (thing.id, None) not in scene.expressions:
            continue
        masks.append(drawn.mask_HW)
        heads.append((thing.id, "object", thing.category, None, tuple(scene.expressions[thing.id, None])))
        for part in drawn.parts:
            texts = scene.expressions.get((thing.id, part.name))
            if texts:
                masks.append(part.mask_HW)
                noun = part.name.removeprefix("left ").removeprefix("right ")
                part_id = f"{thing.id}-{part.name.replace(' ', '-')}"
                heads.append((part_id, "part", f"{thing.category}:{noun}", thing.id, tuple(texts)))
    rles = coco_mask.encode(np.asfortranarray(np.stack(masks, axis=-1).astype(np.uint8)))
    boxes = coco_mask.toBbox(rles).tolist()
    for (target_id, granularity, category, parent, texts), rle, box in zip(heads, rles, boxes, strict=True):
        height, width = rle["size"]
        yield Target(target_id, granularity, category, Rle(height, width, rle["counts"]), tuple(box), texts, parent)
