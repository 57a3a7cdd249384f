"""The composite objects of the scenes: each is a list of polygons, each polygon belongs to a named part.

Shapes are written in free units with y downwards; `unit_shape` scales them so that their box has the area 1. A name
with "left" or "right" is the viewer's side; mirroring a shape swaps the two.

Suffixes: N points of a polygon, 2 = (x, y).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
Rgb = tuple[int, int, int]

COLOURS: dict[str, Rgb] = {
    "red": (212, 42, 42),
    "orange": (242, 135, 28),
    "yellow": (246, 214, 50),
    "green": (52, 158, 70),
    "blue": (44, 104, 214),
    "purple": (146, 66, 186),
}
# What is not of the object's own colour is kept greyish, so that "the red car" has one reading.
NEUTRALS: dict[str, Rgb] = {
    "tyre": (48, 48, 54),
    "hub": (190, 192, 198),
    "glass": (196, 226, 240),
    "white": (246, 244, 238),
    "grey": (132, 136, 146),
    "slate": (84, 88, 104),
    "wood": (122, 82, 52),
    "skin": (236, 190, 156),
    "hair": (78, 54, 42),
    "cloth": (64, 70, 96),
    "stalk": (96, 146, 84),
    "lamp": (255, 246, 206),
    "nose": (232, 160, 160),
}
MAIN = "main"  # the object's own colour; "main-" darker, "main+" lighter
_TONES = {MAIN: 1.0, "main-": 0.8, "main+": 1.18}


@dataclass(frozen=True)
class Polygon:
    """One polygon of a shape: the part it belongs to, the name of its paint, its corners."""

    part: str
    paint: str
    points_N2: Points


Shape = list[Polygon]


def paint_rgb(paint: str, main: Rgb) -> Rgb:
    """The colour of a paint on an object whose own colour is `main`."""
    if paint not in _TONES:
        return NEUTRALS[paint]
    r, g, b = (min(255, round(value * _TONES[paint])) for value in main)
    return r, g, b


def _polygon(*corners: tuple[float, float]) -> Points:
    return np.array(corners, dtype=np.float64)


def _box(x0: float, y0: float, x1: float, y1: float) -> Points:
    return _polygon((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def _symmetric(x: float, *half: tuple[float, float]) -> Points:
    """The polygon whose right half, measured from the axis at `x`, is `half`."""
    return _polygon(*((x + dx, y) for dx, y in half), *((x - dx, y) for dx, y in reversed(half)))


_ANGLES = np.linspace(0, 2 * math.pi, 20, endpoint=False)
_CIRCLE_N2: Points = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)


def _ellipse(x: float, y: float, rx: float, ry: float, turn: float = 0.0) -> Points:
    return np.array((x, y)) + _turned(_CIRCLE_N2 * (rx, ry), turn)


def _turned(points_N2: Points, angle: float) -> Points:
    c, s = math.cos(angle), math.sin(angle)
    return points_N2 @ np.array([[c, s], [-s, c]])


def _limb(x0: float, y0: float, x1: float, y1: float, width: float) -> Points:
    """A straight band from (x0, y0) to (x1, y1)."""
    length = math.hypot(x1 - x0, y1 - y0)
    nx, ny = (y0 - y1) / length * width / 2, (x1 - x0) / length * width / 2
    return _polygon((x0 + nx, y0 + ny), (x1 + nx, y1 + ny), (x1 - nx, y1 - ny), (x0 - nx, y0 - ny))


def _car(rng: np.random.Generator) -> Shape:
    front, back, top = rng.uniform(1.55, 1.75), rng.uniform(0.2, 0.5), rng.uniform(-0.04, 0.1)
    wheel = rng.uniform(0.2, 0.24)
    pane = ((back + 0.16, 0.4), (back + 0.28, top + 0.1), (front - 0.45, top + 0.1), (front - 0.18, 0.4))
    hood = ((front - 0.1, 0.4), (1.9, 0.48), (2, 0.6), (2, 0.84))
    shape = [
        Polygon("roof", "main-", _polygon((back, 0.46), (back + 0.2, top), (front - 0.4, top), (front, 0.46))),
        Polygon("window", "glass", _polygon(*pane)),
        Polygon("body", MAIN, _polygon((0, 0.84), (0, 0.5), (0.1, 0.4), *hood)),
        Polygon("body", "lamp", _ellipse(1.91, 0.57, 0.07, 0.07)),
        Polygon("body", "grey", _box(0, 0.74, 2, 0.84)),
    ]
    for name, x in (("left wheel", 0.42), ("right wheel", 1.55)):
        shape += [
            Polygon(name, "tyre", _ellipse(x, 0.84, wheel, wheel)),
            Polygon(name, "hub", _ellipse(x, 0.84, wheel * 0.45, wheel * 0.45)),
        ]
    return shape


def _house(rng: np.random.Generator) -> Shape:
    half, eaves, ridge = rng.uniform(0.45, 0.62), rng.uniform(0.42, 0.52), rng.uniform(0.0, 0.35)
    door, pane = -0.68 * half, 0.42 * half
    shape = [
        Polygon("wall", MAIN, _symmetric(0, (half - 0.07, eaves - 0.04), (half - 0.07, 1.1))),
        Polygon("roof", "slate", _symmetric(0, (ridge, 0), (half + 0.03, eaves))),
        Polygon("door", "wood", _box(door, 0.7, door + 0.24, 1.1)),
        Polygon("door", "lamp", _ellipse(door + 0.19, 0.92, 0.022, 0.022)),
        Polygon("window", "white", _box(pane - 0.15, 0.62, pane + 0.15, 0.88)),
        Polygon("window", "glass", _box(pane - 0.12, 0.65, pane + 0.12, 0.85)),
        Polygon("window", "white", _box(pane - 0.014, 0.65, pane + 0.014, 0.85)),
    ]
    if rng.random() < 0.5:
        shape.insert(0, Polygon("chimney", "grey", _box(half * 0.44, -0.02, half * 0.44 + 0.16, eaves)))
    return shape


def _tree(rng: np.random.Generator) -> Shape:
    kind, wide = rng.integers(3), rng.uniform(0.42, 0.52)
    trunk = Polygon("trunk", "wood", _polygon((0.43, 0.6), (0.57, 0.6), (0.61, 1.3), (0.39, 1.3)))
    if kind == 0:  # a fir
        tiers = ((0.0, 0.46, 0.66), (0.26, 0.72, 0.84), (0.52, 1.0, 1.0))
        crown = [
            Polygon("crown", paint, _polygon((0.5, top), (0.5 + wide * share, low), (0.5 - wide * share, low)))
            for (top, low, share), paint in reversed(list(zip(tiers, ("main+", MAIN, "main-"), strict=True)))
        ]
    elif kind == 1:  # a poplar
        crown = [
            Polygon("crown", MAIN, _ellipse(0.5, 0.48, wide * 0.84, 0.5)),
            Polygon("crown", "main+", _ellipse(0.44, 0.36, wide * 0.4, 0.24)),
        ]
    else:  # an oak
        crown = [
            Polygon("crown", "main-", _ellipse(0.5 + wide * 0.62, 0.56, 0.27, 0.25)),
            Polygon("crown", "main-", _ellipse(0.5 - wide * 0.62, 0.56, 0.27, 0.25)),
            Polygon("crown", MAIN, _ellipse(0.5, 0.42, wide * 0.86, 0.42)),
            Polygon("crown", "main+", _ellipse(0.42, 0.3, wide * 0.42, 0.18)),
        ]
    return [trunk, *crown]


def _person(rng: np.random.Generator) -> Shape:
    shape = [
        Polygon("legs", "cloth", _symmetric(0, (0.2, 1.08), (0.23, 1.85), (0.04, 1.85), (0.0, 1.25))),
        Polygon("legs", "tyre", _box(-0.28, 1.83, -0.04, 1.93)),
        Polygon("legs", "tyre", _box(0.04, 1.83, 0.28, 1.93)),
    ]
    for name, side in (("left arm", -1), ("right arm", 1)):
        lift = rng.choice((0.55, 0.45, -0.3), p=(0.5, 0.3, 0.2))
        hand_x, hand_y = side * rng.uniform(0.42, 0.62), 0.54 + lift
        shape += [
            Polygon(name, "main-", _limb(side * 0.2, 0.56, hand_x, hand_y, 0.16)),
            Polygon(name, "skin", _ellipse(hand_x, hand_y, 0.085, 0.085)),
        ]
    hair = ((0.09, -0.03), (0.21, 0.08), (0.21, 0.24), (0.13, 0.11))
    return [
        *shape,
        Polygon("torso", MAIN, _symmetric(0, (0.18, 0.44), (0.26, 0.54), (0.22, 1.14))),
        Polygon("head", "skin", _ellipse(0, 0.22, 0.2, 0.23)),
        Polygon("head", "hair", _symmetric(0, *hair)),
        Polygon("head", "tyre", _ellipse(-0.075, 0.22, 0.025, 0.035)),
        Polygon("head", "tyre", _ellipse(0.075, 0.22, 0.025, 0.035)),
    ]


def _boat(rng: np.random.Generator) -> Shape:
    top, sail = rng.uniform(0.0, 0.2), rng.uniform(0.42, 0.55)
    return [
        Polygon("mast", "wood", _box(0.56, top - 0.06, 0.65, 0.78)),
        Polygon("sail", "white", _polygon((0.68, top), (0.68 + sail, 0.68), (0.68, 0.68))),
        Polygon("sail", "hub", _polygon((0.68, 0.56), (0.68 + sail * 0.83, 0.56), (0.68 + sail, 0.68), (0.68, 0.68))),
        Polygon("hull", MAIN, _polygon((0, 0.76), (1.35, 0.76), (1.1, 1.12), (0.2, 1.12))),
        Polygon("hull", "main+", _polygon((0, 0.76), (1.35, 0.76), (1.3, 0.84), (0.05, 0.84))),
    ]


def _flower(rng: np.random.Generator) -> Shape:
    num_petals, first = int(rng.integers(5, 8)), rng.uniform(0, 2 * math.pi)
    long, wide = 0.23, 1.1 / num_petals
    shape = [
        Polygon("stem", "stalk", _box(0.45, 0.5, 0.55, 1.45)),
        Polygon("left leaf", "stalk", _ellipse(0.24, rng.uniform(1.02, 1.22), 0.25, 0.11, 0.5)),
        Polygon("right leaf", "stalk", _ellipse(0.76, rng.uniform(1.02, 1.22), 0.25, 0.11, -0.5)),
    ]
    for number in range(num_petals):
        angle = first + number * 2 * math.pi / num_petals
        centre = (0.5 + 0.24 * math.cos(angle), 0.42 + 0.24 * math.sin(angle))
        shape.append(Polygon("petals", (MAIN, "main+")[number % 2], _ellipse(*centre, long, wide, angle)))
    shape.append(Polygon("centre", "hair", _ellipse(0.5, 0.42, 0.16, 0.16)))
    shape.append(Polygon("centre", "wood", _ellipse(0.5, 0.42, 0.1, 0.1)))
    return shape


def _cat(rng: np.random.Generator) -> Shape:
    tip = rng.uniform(0.5, 0.8)
    return [
        Polygon("tail", "main-", _limb(0.66, 1.24, 1.06, 1.1, 0.15)),
        Polygon("tail", "main-", _limb(1.05, 1.14, 1.12, tip, 0.15)),
        Polygon("tail", "main-", _ellipse(1.05, 1.11, 0.085, 0.085)),
        Polygon("tail", "main", _ellipse(1.12, tip, 0.085, 0.085)),
        Polygon("body", MAIN, _ellipse(0.5, 0.98, 0.34, 0.4)),
        Polygon("body", "main+", _ellipse(0.5, 1.0, 0.17, 0.27)),
        Polygon("body", "main-", _ellipse(0.33, 1.32, 0.15, 0.09)),
        Polygon("body", "main-", _ellipse(0.67, 1.32, 0.15, 0.09)),
        Polygon("left ear", "main-", _polygon((0.16, 0.34), (0.17, -0.06), (0.47, 0.16))),
        Polygon("left ear", "nose", _polygon((0.21, 0.26), (0.22, 0.06), (0.36, 0.16))),
        Polygon("right ear", "main-", _polygon((0.84, 0.34), (0.83, -0.06), (0.53, 0.16))),
        Polygon("right ear", "nose", _polygon((0.79, 0.26), (0.78, 0.06), (0.64, 0.16))),
        Polygon("head", MAIN, _ellipse(0.5, 0.42, 0.37, 0.31)),
        Polygon("head", "tyre", _ellipse(0.36, 0.38, 0.05, 0.07)),
        Polygon("head", "tyre", _ellipse(0.64, 0.38, 0.05, 0.07)),
        Polygon("head", "nose", _polygon((0.44, 0.5), (0.56, 0.5), (0.5, 0.58))),
    ]


def _rocket(rng: np.random.Generator) -> Shape:
    half, low = rng.uniform(0.21, 0.27), rng.uniform(1.5, 1.62)
    fin = ((half - 0.05, 0.85), (0.48, 1.2), (0.48, low), (half - 0.08, 1.3))
    return [
        Polygon("body", "slate", _symmetric(0, (0.12, 1.3), (0.18, 1.48))),
        Polygon("left fin", "grey", _polygon(*((-x, y) for x, y in fin))),
        Polygon("right fin", "grey", _polygon(*fin)),
        Polygon("body", MAIN, _symmetric(0, (half - 0.02, 0.42), (half + 0.03, 0.8), (half - 0.04, 1.32))),
        Polygon("nose", "white", _symmetric(0, (0, -0.05), (half * 0.6, 0.18), (half, 0.46))),
        Polygon("window", "slate", _ellipse(0, 0.74, 0.16, 0.16)),
        Polygon("window", "glass", _ellipse(0, 0.74, 0.12, 0.12)),
    ]


@dataclass(frozen=True)
class Category:
    """How one category of objects is drawn.

    `colours` are its own colours; `tilt` is the largest turn in radians; `flies`: it need not stand on the ground.
    """

    draw: Callable[[np.random.Generator], Shape]
    colours: tuple[str, ...] = tuple(COLOURS)
    tilt: float = 0.05
    flies: bool = False


CATEGORIES: dict[str, Category] = {
    "car": Category(_car),
    "house": Category(_house, tilt=0.0),
    "tree": Category(_tree),
    "person": Category(_person),
    "boat": Category(_boat, tilt=0.1),
    # A green flower would be told by its petals alone: every flower has a green stem.
    "flower": Category(_flower, tuple(c for c in COLOURS if c != "green"), tilt=0.12),
    "cat": Category(_cat),
    "rocket": Category(_rocket, tilt=0.3, flies=True),
}


def unit_shape(category: str, rng: np.random.Generator) -> Shape:
    """A random instance of `category`, maybe mirrored, a little turned; its box has area 1 and starts at (0, 0)."""
    spec = CATEGORIES[category]
    shape = spec.draw(rng)
    if rng.random() < 0.5:
        shape = [_mirrored(polygon) for polygon in shape]
    turn = rng.uniform(-spec.tilt, spec.tilt)
    turned = [_turned(polygon.points_N2, turn) for polygon in shape]
    corners_N2 = np.concatenate(turned)
    low, high = corners_N2.min(axis=0), corners_N2.max(axis=0)
    scale = 1 / math.sqrt(np.prod(high - low))
    return [Polygon(p.part, p.paint, (points - low) * scale) for p, points in zip(shape, turned, strict=True)]


def _mirrored(polygon: Polygon) -> Polygon:
    side, _, rest = polygon.part.partition(" ")
    part = {"left": f"right {rest}", "right": f"left {rest}"}.get(side, polygon.part)
    return Polygon(part, polygon.paint, polygon.points_N2 * (-1, 1))


def extent(shape: Shape) -> tuple[float, float]:
    """Width and height of a unit shape's box."""
    width, height = np.concatenate([polygon.points_N2 for polygon in shape]).max(axis=0)
    return float(width), float(height)
