"""Referring expressions for data sets that name categories but carry no text."""

import re
from collections.abc import Sequence

from mres.records import Expression

Box = tuple[float, float, float, float]  # x, y, width, height in pixels

# Centres must be this share of the image's width apart before "left" and "right" are said.
MARGIN = 0.1

_IRREGULAR = {
    "calf": "calves",
    "child": "children",
    "fish": "fish",
    "foot": "feet",
    "goose": "geese",
    "knife": "knives",
    "leaf": "leaves",
    "lens": "lenses",
    "loaf": "loaves",
    "man": "men",
    "mouse": "mice",
    "person": "people",
    "scarf": "scarves",
    "sheep": "sheep",
    "shelf": "shelves",
    "tooth": "teeth",
    "wolf": "wolves",
    "woman": "women",
}
_PLURAL_ALREADY = ("teeth",)
_LONGEST_ACRONYM = 4  # all in capitals, and longer: a file that shouts
_SAYS_A_SIDE = re.compile(r"(?<![a-z])(?:left|right|lh|rh|fl|fr|rl|rr)(?=most|hand|side|ward|[^a-z]|$)")
_INFLECTED = re.compile("[A-Za-z'-]*[A-Za-z]")  # what English endings can be put to: not "汽车", "N/A", "2"


def noun_of(name: str) -> str:
    """What a category is called in a sentence: "car_(automobile)" → "car", "Cabinet/shelf" → "cabinet"; "SUV", "N/A" stay."""
    without_qualifier = re.sub(r"[_ ]*\([^)]*\)", "", name)
    first, *others = without_qualifier.split("/")
    # One letter is no name: the stroke belongs to it ("N/A", "A/C unit").
    noun = without_qualifier if others and len(first.strip(" _")) < 2 else first
    return " ".join(word if _keeps_capitals(word) else word.lower() for word in _words(noun).split())


def _keeps_capitals(word: str) -> bool:
    """Of "SUV", "N/A" and "iPhone", not of "Car" and "BUMPER"."""
    return word[1:] != word[1:].lower() and not (word.isupper() and len(word) > _LONGEST_ACRONYM)


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
    noun = plural(_words(name)) if several else _words(name)
    texts = [f"the {noun}", noun]
    if whole is not None:
        owner = _words(whole)
        texts = [f"{noun} of the {owner}", f"the {noun}", *_owned(noun, owner)]
    return tuple(Expression(text, "category") for text in texts)


def part_expressions(part: str, owner: str, kind: str = "category") -> tuple[Expression, ...]:
    """For a part of what `owner` singles out: "wheel of the left car", "the wheel of the left car", "the left car's wheel".

    Never the part's name alone: something else in the image may have such a part.
    """
    texts = (f"{part} of the {owner}", f"the {part} of the {owner}", *_owned(part, owner))
    return tuple(Expression(text, kind) for text in texts)


def position_expressions(
    name: str, whole: str | None, boxes: Sequence[Box], width: int
) -> dict[int, tuple[Expression, ...]]:
    """For single instances of one category that `position_words` tells apart: {position in `boxes`: …}."""
    words = position_words(name, boxes, width)
    return {index: _positioned(_words(name), whole, word) for index, word in words.items()}


def position_words(name: str, boxes: Sequence[Box], width: int) -> dict[int, str]:
    """What singles out the outermost instances, from the viewer: {position in `boxes`: "left", "rightmost" …}.

    Each is named if its centre keeps clear of its neighbour's; none is if the category's own name says left or right
    (a "left left mirror" would say nothing).
    """
    if _SAYS_A_SIDE.search(name.lower()) or len(boxes) < 2:
        return {}
    centres = [box[0] + box[2] / 2 for box in boxes]
    order = sorted(range(len(boxes)), key=lambda index: centres[index])
    words = ("left", "right") if len(boxes) == 2 else ("leftmost", "rightmost")
    found = {}
    for word, outer, neighbour in ((words[0], order[0], order[1]), (words[1], order[-1], order[-2])):
        if abs(centres[outer] - centres[neighbour]) >= MARGIN * width:
            found[outer] = word
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


def plural(noun: str) -> str:
    """The plural of a noun's last word; what looks like one already ("scissors", "ear pads") or is no English word stays."""
    rest, space, last = noun.rpartition(" ")
    if not _INFLECTED.fullmatch(last):
        return noun
    if last in _IRREGULAR:
        return rest + space + _IRREGULAR[last]
    lower = last.lower()
    if last in _PLURAL_ALREADY or (lower.endswith("s") and not lower.endswith(("ss", "us"))):
        return noun
    if lower.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if last.endswith("y") and last[-2:-1] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def _owned(part: str, owner: str) -> list[str]:
    return [f"the {possessive(owner)} {part}"] if _INFLECTED.fullmatch(owner.rpartition(" ")[2]) else []


def possessive(noun: str) -> str:
    return noun + ("'" if noun.endswith("s") else "'s")
