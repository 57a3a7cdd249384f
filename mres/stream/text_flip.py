"""Left and right in the words of an expression: what stays true of a mirrored image."""

import re

_SIDES = {"left": "right", "right": "left"}
_SIDE_WORD = re.compile(r"(?<![a-z])(left|right)(?=most|hand|ward|[^a-z]|$)", re.IGNORECASE)


def has_side_word(text: str) -> bool:
    return _SIDE_WORD.search(text) is not None


def swap_side_words(text: str) -> str:
    """What stays true of a mirrored image: left and right change places ("leftmost", "right-hand", "back_left" too)."""

    def swap(match: re.Match[str]) -> str:
        word = match.group(0)
        other = _SIDES[word.lower()]
        return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other

    return _SIDE_WORD.sub(swap, text)
