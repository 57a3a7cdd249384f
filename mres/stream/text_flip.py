"""Left and right in the words of an expression: what stays true of a mirrored image."""

import re

_OTHER = {"left": "right", "right": "left"}
_LEFT_OR_RIGHT = re.compile(r"(?<![a-z])(left|right)(?=most|hand|ward|[^a-z]|$)", re.IGNORECASE)


def is_flip_sensitive(text: str) -> bool:
    return _LEFT_OR_RIGHT.search(text) is not None


def flip_text(text: str) -> str:
    """What stays true of a mirrored image: left and right change places ("leftmost", "right-hand", "back_left" too)."""

    def swap(match: re.Match[str]) -> str:
        word = match.group(0)
        other = _OTHER[word.lower()]
        return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other

    return _LEFT_OR_RIGHT.sub(swap, text)
