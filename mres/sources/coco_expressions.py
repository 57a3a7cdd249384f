"""Referring expressions for data sets that name categories but carry no text."""

from collections.abc import Sequence

from mres.records import Expression

Box = tuple[float, float, float, float]  # x, y, width, height in pixels

# Centres must be this share of the image's width apart before "left" and "right" are said.
MARGIN = 0.1


def whole_expressions(whole: str) -> tuple[Expression, ...]:
    """For the whole object: "the car", "car", "the whole car"."""
    noun = _words(whole)
    return tuple(Expression(text, "category") for text in (f"the {noun}", noun, f"the whole {noun}"))


def category_expressions(name: str, whole: str | None, *, several: bool) -> tuple[Expression, ...]:
    """For all parts of a category together: "front bumper of the car", "the front bumper", "the car's front bumper".

    Args:
        name: the category's name, words joined by underscores.
        whole: what it is a part of.
        several: there are several instances, so the noun is in the plural.
    """
    noun = _plural(_words(name)) if several else _words(name)
    texts = [f"the {noun}", noun]
    if whole is not None:
        owner = _words(whole)
        texts = [f"{noun} of the {owner}", f"the {noun}", f"the {owner}'s {noun}"]
    return tuple(Expression(text, "category") for text in texts)


def position_expressions(
    name: str, whole: str | None, boxes: Sequence[Box], width: int
) -> dict[int, tuple[Expression, ...]]:
    """For single instances of one category that the viewer's left and right tell apart: {position in `boxes`: …}.

    The outermost instances are named if their centres keep clear of their neighbour's; none is if the category's own
    name says left or right (a "left left mirror" would say nothing).
    """
    noun = _words(name)
    if {"left", "right"} & set(noun.split()):
        return {}
    centres = [box[0] + box[2] / 2 for box in boxes]
    order = sorted(range(len(boxes)), key=lambda index: centres[index])
    words = ("left", "right") if len(boxes) == 2 else ("leftmost", "rightmost")
    found = {}
    for word, outer, neighbour in ((words[0], order[0], order[1]), (words[1], order[-1], order[-2])):
        if abs(centres[outer] - centres[neighbour]) >= MARGIN * width:
            found[outer] = _positioned(noun, whole, word)
    return found


def _positioned(noun: str, whole: str | None, word: str) -> tuple[Expression, ...]:
    texts = [f"the {word} {noun}"]
    if whole is not None:
        texts.append(f"{word} {noun} of the {_words(whole)}")
    if word in ("left", "right"):
        texts.append(f"{noun} on the {word}")
    return tuple(Expression(text, "position") for text in texts)


def _words(name: str) -> str:
    return " ".join(name.replace("_", " ").split())


def _plural(noun: str) -> str:
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"
