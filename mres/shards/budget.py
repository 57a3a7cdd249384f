"""How many records may be bad, and how many masks empty, before a build is refused; what is said of them."""

import sys
from collections.abc import Sequence

from mres.errors import UserError

_SHOWN = 20  # bad records that one run names
_MOST_CHARACTERS = 1_000  # of a message: names can be of any length
_LOOK_ON = 10_000  # records that a build still makes for their sake, once it has failed


def bounded(message: object) -> str:
    """A message without its middle, where it is long."""
    text, half = str(message), _MOST_CHARACTERS // 2
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:half]} … {text[-half:]}"


class TooManyBadError(UserError):
    """More bad records than may be."""


class Budget:
    """Counts bad records and refuses too many; before it does, the build looks for others, so that one run names several.

    Args:
        total: how many records there are.
        fraction: the share of them that may be bad.
    """

    def __init__(self, total: int, fraction: float) -> None:
        self._total, self._fraction = total, fraction
        self._errors: dict[int, Sequence[str]] = {}
        self._failed_at: int | None = None

    def add(self, piece: int, errors: Sequence[str], seen: int) -> None:
        """The bad records of a piece of the work; `seen` is how many records were looked at so far, good and bad.

        Raises:
            TooManyBadError: more than may be, and enough is known to say so.
        """
        self._errors[piece] = errors
        if not self._is_exceeded():
            return
        if self._failed_at is None:
            self._failed_at = seen
        if self._count() >= _SHOWN or seen - self._failed_at >= _LOOK_ON:
            self.check()

    def check(self) -> None:
        """Raises: TooManyBadError: more than may be."""
        if not self._is_exceeded():
            return
        errors = [error for piece in sorted(self._errors) for error in self._errors[piece]]
        if self._fraction == 0 and len(errors) == 1:
            raise TooManyBadError(errors[0])
        shown = "".join(f"\n  {error}" for error in errors[:_SHOWN])
        more = f"\n  … and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
        raise TooManyBadError(
            f"too many bad records: at least {len(errors)} of {self._total}, allowed is a share of "
            f"{self._fraction:g} (--max-bad-fraction); the first:{shown}{more}"
        )

    def _count(self) -> int:
        return sum(map(len, self._errors.values()))

    def _is_exceeded(self) -> bool:
        return self._count() > self._fraction * self._total


def check_empty_masks(empty: int, masks: int, fraction: float) -> None:
    """Warns of empty masks that nothing says are meant so.

    Raises:
        UserError: they are more than a share of `fraction` of all.
    """
    if not empty:
        return
    found = f"{empty} of {masks} masks have no pixel, and nothing says that this is meant (no_target)"
    if empty > fraction * masks:
        raise UserError(
            f"{found}; allowed is a share of {fraction:g}. Where the expressions refer to nothing in the image, say so "
            'by "no_target": true; else look at how the masks were made, or allow more by --max-empty-fraction'
        )
    print(f"warning: {found}; models learn from them to answer with no pixel", file=sys.stderr)
