"""Unambiguous referring expressions: which object a reference singles out, and how it is said.

A reference counts only if exactly one object of the scene satisfies it, clearly: positions differ by at least `MARGIN`
of the image's side (and both edges by `EDGE_MARGIN`: no object lies within the other's span), sizes by a factor of at
least `SIZE_RATIO`; a rival never satisfies it, not even barely.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

RELATIONAL_KINDS = ("position", "size", "relation")
MARGIN = 0.12
EDGE_MARGIN = 0.02
SIZE_RATIO = 1.4
NEAR = 0.45  # "next to": at most this far from centre to centre


@dataclass(frozen=True)
class SceneObject:
    """What the predicates see of an object, measured on its visible mask's box.

    `left`, `top`, `right`, `bottom` are the box's edges in fractions of the image's side. `parts`: the names of the
    parts that are visible enough. `id` is the id of its target in the record.
    """

    id: str
    category: str
    colour: str
    left: float
    top: float
    right: float
    bottom: float
    parts: tuple[str, ...]

    @property
    def x(self) -> float:
        return (self.left + self.right) / 2

    @property
    def y(self) -> float:
        return (self.top + self.bottom) / 2

    @property
    def size(self) -> float:
        """Side of the square that is as large as the box."""
        return ((self.right - self.left) * (self.bottom - self.top)) ** 0.5


@dataclass(frozen=True)
class Reference:
    """One way of singling out an object: of `category` (and `colour`), by a place or size among its like, or by a
    relation to an anchor of another category."""

    category: str
    colour: str | None = None
    word: str | None = None
    anchor: "Reference | None" = None

    @property
    def kind(self) -> str:
        if self.word is None:
            return "category" if self.colour is None else "colour"
        if self.anchor is not None:
            return "relation"
        return "size" if self.word in ("large", "small") else "position"


Test = Callable[[SceneObject, SceneObject], bool]


def _clearly_left(a: SceneObject, b: SceneObject) -> bool:
    return b.x - a.x >= MARGIN and min(b.left - a.left, b.right - a.right) >= EDGE_MARGIN


def _clearly_above(a: SceneObject, b: SceneObject) -> bool:
    return b.y - a.y >= MARGIN and min(b.top - a.top, b.bottom - a.bottom) >= EDGE_MARGIN


def _clearly_larger(a: SceneObject, b: SceneObject) -> bool:
    return a.size >= SIZE_RATIO * b.size


# Does the first object deserve the word rather than the second?
CLEARLY: Mapping[str, Test] = {
    "left": _clearly_left,
    "right": lambda a, b: _clearly_left(b, a),
    "top": _clearly_above,
    "bottom": lambda a, b: _clearly_above(b, a),
    "large": _clearly_larger,
    "small": lambda a, b: _clearly_larger(b, a),
}
# Relation of an object to its anchor: the unit vector of its direction, and the word that must hold clearly.
DIRECTIONS: Mapping[str, tuple[int, int, str]] = {
    "left of": (-1, 0, "left"),
    "right of": (1, 0, "right"),
    "above": (0, -1, "top"),
    "below": (0, 1, "bottom"),
}


def referent(reference: Reference, objects: Sequence[SceneObject]) -> SceneObject | None:
    """The one object that satisfies `reference` clearly while no other satisfies it at all; None where there is none.

    References by position, size and relation need a rival of the same description: else they would say too much.
    """
    like = [o for o in objects if o.category == reference.category and reference.colour in (None, o.colour)]
    if reference.word is None:
        return like[0] if len(like) == 1 else None
    if len(like) < 2:
        return None
    if reference.anchor is not None:
        anchor = referent(reference.anchor, objects)
        return None if anchor is None else _related(reference.word, anchor, like)
    if reference.word == "middle":
        return _middle(like)
    return _foremost(CLEARLY[reference.word], like)


def _foremost(clearly: Test, like: Sequence[SceneObject]) -> SceneObject | None:
    return next((o for o in like if all(clearly(o, rival) for rival in like if rival is not o)), None)


def _middle(like: Sequence[SceneObject]) -> SceneObject | None:
    """The middle one of three from left to right, if they are spread more in width than in height."""
    if len(like) != 3:
        return None
    left, middle, right = sorted(like, key=lambda o: o.x)
    heights = [o.y for o in like]
    clear = _clearly_left(left, middle) and _clearly_left(middle, right)
    clear = clear and right.x - left.x >= max(heights) - min(heights)
    return middle if clear else None


def _related(word: str, anchor: SceneObject, like: Sequence[SceneObject]) -> SceneObject | None:
    if word == "next to":
        return _nearest(anchor, like)
    dx, dy, clear = DIRECTIONS[word]
    satisfying = [o for o in like if dx * (o.x - anchor.x) + dy * (o.y - anchor.y) > 0]
    if len(satisfying) != 1:
        return None
    only = satisfying[0]
    along = dx * (only.x - anchor.x) + dy * (only.y - anchor.y)
    across = abs(dy * (only.x - anchor.x) + dx * (only.y - anchor.y))
    return only if CLEARLY[clear](only, anchor) and along >= across / 2 else None


def _nearest(anchor: SceneObject, like: Sequence[SceneObject]) -> SceneObject | None:
    def distance(o: SceneObject) -> float:
        return ((o.x - anchor.x) ** 2 + (o.y - anchor.y) ** 2) ** 0.5

    first, second = sorted(like, key=distance)[:2]
    near = distance(first)
    return first if near <= NEAR and distance(second) >= max(near + MARGIN, 1.5 * near) else None


def references(objects: Sequence[SceneObject]) -> Iterator[tuple[Reference, SceneObject]]:
    """Every reference that singles out an object of the scene, with that object."""
    for reference in _conceivable(objects):
        found = referent(reference, objects)
        if found is not None:
            yield reference, found


def _conceivable(objects: Sequence[SceneObject]) -> Iterator[Reference]:
    number = Counter(o.category for o in objects)
    colours = dict.fromkeys((o.category, o.colour) for o in objects)
    # An anchor is named by its category where that is enough.
    anchors = [Reference(category, colour if number[category] > 1 else None) for category, colour in colours]
    for category, colour in (*((category, None) for category in number), *colours):
        yield Reference(category, colour)
        for word in (*CLEARLY, "middle"):
            yield Reference(category, colour, word)
        for anchor in anchors:
            if anchor.category != category:
                for word in (*DIRECTIONS, "next to"):
                    yield Reference(category, colour, word, anchor)


# {n} the noun with its colour, {ns} its plural, {a} the anchor, {bare} the noun alone.
_AMONG_MANY: Mapping[str, tuple[str, ...]] = {
    "left": ("the leftmost {n}", "the {n} furthest to the left"),
    "right": ("the rightmost {n}", "the {n} furthest to the right"),
    "top": ("the topmost {n}", "the highest {n}"),
    "bottom": ("the lowest {n}", "the bottommost {n}"),
    "middle": ("the middle {n}", "the {n} in the middle"),
    "large": ("the largest {n}", "the biggest {n}", "the biggest of the {ns}"),
    "small": ("the smallest {n}", "the tiniest {n}", "the smallest of the {ns}"),
}
_OF_TWO: Mapping[str, tuple[str, ...]] = {
    "left": ("the left {n}", "the {n} on the left", "the leftmost {n}"),
    "right": ("the right {n}", "the {n} on the right", "the rightmost {n}"),
    "top": ("the top {n}", "the upper {n}", "the {n} at the top"),
    "bottom": ("the bottom {n}", "the lower {n}", "the {n} at the bottom"),
    "large": ("the large {n}", "the big {n}", "the larger {n}", "the bigger one of the {ns}"),
    "small": ("the small {n}", "the smaller {n}", "the smallest {n}", "the smaller one of the {ns}"),
}
_RELATED: Mapping[str, tuple[str, ...]] = {
    "left of": ("the {n} left of {a}", "the {n} to the left of {a}"),
    "right of": ("the {n} right of {a}", "the {n} to the right of {a}"),
    "above": ("the {n} above {a}", "the {n} higher than {a}"),
    "below": ("the {n} below {a}", "the {n} lower than {a}"),
    "next to": ("the {n} next to {a}", "the {n} beside {a}", "the {n} closest to {a}"),
}
_PLAIN: Mapping[str, tuple[str, ...]] = {
    "category": ("the {n}", "the {n} in the picture"),
    "colour": ("the {n}", "the {bare} that is {colour}", "the {colour} coloured {bare}"),
}
_PLURALS = {"person": "people"}


def wordings(reference: Reference, num_like: int) -> tuple[str, ...]:
    """Every way of saying `reference` that begins with "the", where `num_like` objects have its category and colour."""
    colour = f"{reference.colour} " if reference.colour else ""
    templates: tuple[str, ...]
    if reference.word is None:
        templates = _PLAIN[reference.kind]
    elif reference.anchor is not None:
        templates = _RELATED[reference.word]
    else:
        templates = (_OF_TWO if num_like == 2 else _AMONG_MANY)[reference.word]
    return tuple(
        template.format(
            n=colour + reference.category,
            ns=colour + _PLURALS.get(reference.category, reference.category + "s"),
            a=wordings(reference.anchor, 1)[0] if reference.anchor else "",
            bare=reference.category,
            colour=reference.colour,
        )
        for template in templates
    )


def part_wordings(part: str, owner: str, category: str) -> tuple[str, ...]:
    """Every way of naming `part` of the object of `category` that is called `owner`."""
    of = f"the {part} of {owner}"
    return (of, f"{owner}'s {part}") if owner.endswith(category) else (of,)
