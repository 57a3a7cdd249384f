"""What stands where: the objects of a scene with their category, colour, size and place, far ones first.

Lengths are fractions of the image's side. Suffixes: N points of a polygon, 2 = (x, y).
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from scenes.options import SceneOptions
from scenes.shapes import CATEGORIES, COLOURS, Polygon, Rgb, Shape, extent, unit_shape

SMALL, LARGE = (0.25, 0.30), (0.43, 0.52)  # side of a square as large as the object's box
ROOMY = 4  # objects that fit at these sizes; where there may be more, all are smaller
MAX_OVERLAP = 0.12  # of the smaller of two boxes
MAX_RIVALS = 3
EDGE = 0.015
TRIES = 24

Box = tuple[float, float, float, float]
T = TypeVar("T")


@dataclass(frozen=True)
class Placed:
    """One object to be drawn: `shape` in image fractions, `box` = (x0, y0, x1, y1) around it."""

    category: str
    colour: str
    rgb: Rgb
    shape: Shape
    box: Box


@dataclass(frozen=True)
class Wish:
    """What an object shall be before it has a place."""

    category: str
    colour: str
    large: bool


def pick(rng: np.random.Generator, values: "list[T] | tuple[T, ...]") -> T:
    return values[int(rng.integers(len(values)))]


def place_objects(rng: np.random.Generator, horizon: float, options: SceneOptions) -> list[Placed]:
    """The objects of one scene, those further back (higher on the ground) first; may be fewer than wished for."""
    placed: list[Placed] = []
    scale = min(1.0, ROOMY / options.max_objects)
    for wish in _wishes(rng, options):
        found = _place(rng, wish, horizon, [other.box for other in placed], scale)
        if found is not None:
            placed.append(found)
    return sorted(placed, key=lambda other: other.box[3])


def _wishes(rng: np.random.Generator, options: SceneOptions) -> list[Wish]:
    """What the objects shall be: often one of the category of an earlier one, but not all of one category."""
    wishes: list[Wish] = []
    number = int(rng.integers(options.min_objects, options.max_objects + 1))
    rivalry = 0.55 + 0.6 * options.relational_share
    for _ in range(number):
        taken = [wish.category for wish in wishes]
        lacks_anchor = len(wishes) == number - 1 >= 2 and len(set(taken)) == 1
        model = pick(rng, wishes) if wishes and rng.random() < rivalry and not lacks_anchor else None
        if model is not None and taken.count(model.category) < MAX_RIVALS:
            wishes.append(_rival(rng, model, options))
        else:
            category = pick(rng, [name for name in CATEGORIES if name not in taken])
            wishes.append(Wish(category, pick(rng, CATEGORIES[category].colours), bool(rng.random() < 0.5)))
    # The large ones take their places first: the small ones find room beside them.
    return sorted(wishes, key=lambda wish: not wish.large)


def _rival(rng: np.random.Generator, model: Wish, options: SceneOptions) -> Wish:
    """Another of the category, often of the other size. Of the same colour, only a relational expression tells it."""
    same_colour = rng.random() < 0.7 * options.relational_share
    colour = model.colour if same_colour else pick(rng, CATEGORIES[model.category].colours)
    return Wish(model.category, colour, bool(rng.random() < (0.35 if model.large else 0.65)))


def _place(rng: np.random.Generator, wish: Wish, horizon: float, taken: list[Box], scale: float) -> Placed | None:
    shape = unit_shape(wish.category, rng)
    side = rng.uniform(*(LARGE if wish.large else SMALL)) * scale
    unit_width, unit_height = extent(shape)
    width, height = unit_width * side, unit_height * side
    if max(width, height) > 1 - 2 * EDGE:
        return None
    highest = EDGE + height if CATEGORIES[wish.category].flies else max(EDGE + height, horizon + 0.06)
    for _ in range(TRIES):
        x = rng.uniform(EDGE, 1 - EDGE - width)
        bottom = rng.uniform(highest, 1 - EDGE)
        box = (x, bottom - height, x + width, bottom)
        if all(_overlap(box, other) <= MAX_OVERLAP for other in taken):
            moved = [Polygon(p.part, p.paint, p.points_N2 * side + box[:2]) for p in shape]
            return Placed(wish.category, wish.colour, _jittered(rng, COLOURS[wish.colour]), moved, box)
    return None


def _overlap(a: Box, b: Box) -> float:
    """The common area of two boxes as a fraction of the smaller one."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


def _jittered(rng: np.random.Generator, rgb: Rgb) -> Rgb:
    shade = rng.uniform(0.92, 1.06)
    r, g, b = (min(255, max(0, round(value * shade + rng.uniform(-8, 8)))) for value in rgb)
    return r, g, b
