"""What the words of an expression say of mirroring: nothing, sides that change places, or that the image must stay.

Only what can be judged is mirrored: English, without a word that a mirror makes untrue. `side_words.py` has the words.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from mres.pixels import side_words

_OTHER = {"left": "right", "right": "left"}
_LEFT_OR_RIGHT = re.compile(r"(?<![a-z])(left|right)(?=most|hand|ward|side|[^a-z]|$)", re.IGNORECASE)

_WORD = re.compile("[a-z]+")
_SIGN = re.compile("[<>\"'0-9]")
_TYPOGRAPHY = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": ".", "\xa0": " "})
_UNJUDGED_SIGN = "arrows and signs that are not ASCII"
_AMBIGUOUS = "left or right that may be no side (right behind, is left)"
_UNSAID_END = "a place in a row, counted from an end that is not said"

# What is looked for only where one of the words stands: {word: (why, pattern)}.
_PHRASES = {
    **dict.fromkeys(("clock", "clocks"), (side_words.HANDED, re.compile(r"\bo.{0,2}clocks?\b"))),
    **dict.fromkeys(("half", "quarter"), (side_words.HANDED, re.compile(r"\b(?:half|quarter) (?:past|to)\b"))),
    **dict.fromkeys(
        ("driver", "drivers", "passenger", "passengers"),
        (side_words.HANDED, re.compile(r"\b(?:driver|passenger)s?(?:'s?)?[ -]?(?:side|door|window|seat)\b")),
    ),
    "side": (side_words.HANDED, re.compile(r"\b(?:near|off)[ -]side\b")),
    "w": (side_words.COMPASS, re.compile(r"\b[ns]\. ?w\b")),
    **dict.fromkeys(("shape", "shaped"), (side_words.WRITTEN, re.compile(r"\b[a-z][ -]shaped?\b"))),
}
_QUOTED = re.compile(r"\"|(?<![a-z0-9])'[^']+'(?![a-z0-9])")
_HARMLESS_NUMBER = re.compile(r"(?<![a-z0-9#.])[1-9](?= [a-z])|\d+(?:st|nd|rd|th)\b")  # "2 people", "3rd"
_DIGIT = re.compile("[0-9]")
# "second from the top", "third row" and "second closest" are not counted from a side; "second in the top row" is.
_END_OF_ROW = re.compile(
    r"left|right|\bfrom (?:the )?(?:top|bottom|front|back|rear|above|below)\b|\b(?:closest|nearest|farthest|furthest)\b"
    r"|\b(?:first|second|third|fourth|fifth|sixth|last|\d(?:st|nd|rd|th)) (?:rows?|floors?|shelf|shelves|levels?|tiers?)\b"
)
_NO_SIDE = re.compile(
    r"\ball right\b|\bright[ -]side[ -]up\b"
    r"|\b(?:is|are|was|were|has|have|had|been|just|who|one) left\b(?![ -](?:of|side|hand|most))"
    r"|\b(?:what's|half|rest|some|pieces?|slices?) left\b(?![ -](?:side|hand|most))"
    r"|\bleft[ -]overs?\b|\bright[ -](?:answer|angled?|triangles?|sized?|kind|way|thing|time|now|away)\b"
)
# "right behind", but not "on the right behind": the word before it tells.
_ADVERB = re.compile(
    r"(?:left|right) (?:next|behind|beside|above|below|under|underneath|near|by|before|after|there|here|now|up|down|against|"
    r"across|over|out|alone|open|between|in (?:front|the middle|the center|between)|at the|on top|on the edge|angle[ds]?)\b"
)
_BEFORE_A_NOUN = re.compile(
    r"\b(?:on|to|from|far|the|upper|lower|bottom|top|middle|center|centre|back|front|rear|and|or|his|her|their|its|s)[ -]$"
)
# What a turn makes untrue; "lefthand", "topmost", "bottom-left" too.
_PLACE = re.compile(
    r"(?<![a-z])(?:left|right|(?:top|bottom|upper|lower)(?:most|[^a-z]|$|left|right)"
    r"|(?:above|below|beneath|under|underneath|over|up|down|upward|upwards|downward|downwards|higher|highest|lowest"
    r"|horizontal|horizontally|vertical|vertically|sideways|north|south)(?![a-z]))"
)


class Judgement(NamedTuple):
    """Of one expression. `why` says what forbids mirroring; "unknown" has no word of any list, be it English or not."""

    kind: Literal["neutral", "swaps", "forbids", "unknown"]
    why: str = ""


@lru_cache(maxsize=1 << 15)
def judge(text: str) -> Judgement:
    """Whether the image of an expression may be mirrored, and whether words change places then."""
    plain = (text if text.isascii() else text.translate(_TYPOGRAPHY)).lower().replace("_", " ")
    if not plain.isascii():
        is_letter = any(char.isalpha() for char in plain if not char.isascii())
        return Judgement("forbids", side_words.ANOTHER_LANGUAGE if is_letter else _UNJUDGED_SIGN)
    words = set(_WORD.findall(plain))
    if why := _forbidden_word(plain, words) or _forbidden_sign(plain):
        return Judgement("forbids", why)
    if "left" in plain or "right" in plain:
        if why := _forbidden_side(plain, words):
            return Judgement("forbids", why)
        if _LEFT_OR_RIGHT.search(plain):
            return Judgement("swaps")
    return Judgement("unknown" if side_words.ENGLISH.isdisjoint(words) else "neutral")


def _forbidden_word(plain: str, words: set[str]) -> str | None:
    for word in words & side_words.FORBIDDING.keys():
        return side_words.FORBIDDING[word]
    for word in words & _PHRASES.keys():
        why, pattern = _PHRASES[word]
        if pattern.search(plain):
            return why
    if not side_words.ORDINALS.isdisjoint(words) and not _END_OF_ROW.search(plain):
        return _UNSAID_END
    return None


def _forbidden_sign(plain: str) -> str | None:
    signs = set(_SIGN.findall(plain))
    if not signs:
        return None
    if signs & {"<", ">"}:
        return _UNJUDGED_SIGN
    if _QUOTED.search(plain):
        return side_words.WRITTEN
    return side_words.WRITTEN if signs - {"'"} and _DIGIT.search(_HARMLESS_NUMBER.sub("", plain)) else None


def _forbidden_side(plain: str, words: set[str]) -> str | None:
    """What holds left or right and cannot be swapped: "bottomleft", "rightish", "right behind"."""
    sides = {word for word in words if "left" in word or "right" in word}
    if any(word not in side_words.HARMLESS and not _LEFT_OR_RIGHT.match(word) for word in sides):
        return side_words.SHORT_OR_MISSPELT
    if _NO_SIDE.search(plain) or any(
        not _BEFORE_A_NOUN.search(plain[: match.start()]) for match in _ADVERB.finditer(plain)
    ):
        return _AMBIGUOUS
    return None


def is_flip_sensitive(text: str) -> bool:
    """Whether a mirror makes the text untrue as it stands, or may do so."""
    return judge(text).kind in ("swaps", "forbids")


def may_flip(texts: Sequence[str], of_image: Iterable[str]) -> bool:
    """Whether an image of which `texts` were drawn may be mirrored, once their sides are swapped.

    A text without a known word is taken for English where another one of the image (`of_image`) is.
    """
    kinds = {judge(text).kind for text in texts}
    if "forbids" in kinds:
        return False
    return "unknown" not in kinds or any(judge(text).kind in ("neutral", "swaps") for text in of_image)


def may_name_place(text: str, *, is_name: bool = False) -> bool:
    """Whether a turn of the image may make the text untrue: it names a side, a height or a direction, or cannot be judged.

    Args:
        is_name: it is made of a name, whose language does not matter.
    """
    if _PLACE.search(text.lower()):
        return True
    judgement = judge(text)
    return not is_name and judgement.kind != "neutral" and judgement.why != side_words.WRITTEN


def flip_text(text: str) -> str:
    """What stays true of a mirrored image: left and right change places ("leftmost", "right-hand", "back_left" too)."""

    def swap(match: re.Match[str]) -> str:
        word = match.group(0)
        other = _OTHER[word.lower()]
        return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other

    return _LEFT_OR_RIGHT.sub(swap, text)
