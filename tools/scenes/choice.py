"""Which of the possible expressions a record gets: how many for each target, and how many of them relational."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from mres.records import Expression
from scenes.expressions import RELATIONAL_KINDS, SceneObject, part_wordings, references, wordings
from scenes.layout import pick

PER_OBJECT = 6
OBJECT_EXPRESSIONS = 16  # of an image at most; its parts get as many as its objects
PER_PART = 3
PATIENCE = 3  # relational expressions that may be owed before plain ones are passed over
BARE = 0.3  # of the expressions leave out their first "the"
# How likely a kind is chosen where several are possible: the rarer ones are possible less often.
WEIGHTS = {"category": 1, "colour": 1, "position": 1, "size": 2, "relation": 3}

Sayings = Mapping[str, Sequence[str]]  # kind -> texts
T = TypeVar("T")


class _Balance:
    """Decides slot by slot whether the expression is to be relational, so that their share comes out as wanted.

    `_due` is how many relational expressions are owed; a slot that could only move it further away is passed over.
    """

    def __init__(self, share: float, start: float) -> None:
        self._share = share
        self._due = start

    def choose(self, kinds: Sequence[str], must: bool) -> list[str]:
        """The kinds among `kinds` to choose from in this slot; none, unless it `must` be filled, passes it over."""
        relational = [kind for kind in kinds if kind in RELATIONAL_KINDS]
        plain = [kind for kind in kinds if kind not in RELATIONAL_KINDS]
        due = self._due + self._share
        if relational and (due >= 1 or (must and not plain)):
            self._due = due - 1
            return relational
        if plain and (due < PATIENCE or must):
            self._due = due
            return plain
        return []


def express(
    rng: np.random.Generator, objects: Sequence[SceneObject], relational_share: float
) -> dict[tuple[str, str | None], list[Expression]]:
    """The expressions of each (object's id, part's name or None for the object itself).

    An object that nothing singles out is left out with its parts.
    """
    sayings = _sayings(objects)
    balance = _Balance(relational_share, rng.random())
    chosen: dict[tuple[str, str | None], list[Expression]] = {}
    things = _shuffled(rng, [o for o in objects if o.id in sayings])
    for thing in (things * PER_OBJECT)[:OBJECT_EXPRESSIONS]:
        taken = chosen.setdefault((thing.id, None), [])
        _add(rng, taken, sayings[thing.id], balance, must=not taken)
    wanted = sum(len(expressions) for expressions in chosen.values())
    for thing, part in _shuffled(rng, [(o, part) for o in things for part in o.parts]) * PER_PART:
        if wanted:
            own = _part_sayings(thing, part, sayings[thing.id])
            wanted -= _add(rng, chosen.setdefault((thing.id, part), []), own, balance, must=False)
    return {key: expressions for key, expressions in chosen.items() if expressions}


def _sayings(objects: Sequence[SceneObject]) -> dict[str, dict[str, list[str]]]:
    """For each object that can be singled out: all texts that do, by kind."""
    sayings: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for reference, thing in references(objects):
        num_like = sum(o.category == reference.category and reference.colour in (None, o.colour) for o in objects)
        sayings[thing.id][reference.kind] += wordings(reference, num_like)
    return sayings


def _part_sayings(thing: SceneObject, part: str, owners: Sayings) -> dict[str, list[str]]:
    return {
        kind: [text for owner in texts for text in part_wordings(part, owner, thing.category)]
        for kind, texts in owners.items()
    }


def _add(rng: np.random.Generator, taken: list[Expression], sayings: Sayings, balance: _Balance, must: bool) -> bool:
    """Adds an expression of a kind that `taken` lacks, if there is one; False where the slot is passed over."""
    used, said = {e.kind for e in taken}, {e.text.removeprefix("the ") for e in taken}
    new = {
        kind: left
        for kind, texts in sayings.items()
        if (left := [text for text in texts if text.removeprefix("the ") not in said])
    }
    kinds = balance.choose(list(new), must)
    if not kinds:
        return False
    unused = [kind for kind in kinds if kind not in used] or kinds
    kind = pick(rng, [kind for kind in unused for _ in range(WEIGHTS[kind])])
    text = pick(rng, new[kind])
    taken.append(Expression(text.removeprefix("the ") if rng.random() < BARE else text, kind))
    return True


def _shuffled(rng: np.random.Generator, values: list[T]) -> list[T]:
    return [values[i] for i in rng.permutation(len(values))]
