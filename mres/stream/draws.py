"""Which K expressions of a record a batch takes."""

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from mres.records import GRANULARITIES, ImageRecord, Target
from mres.stream.config import DataConfig

CategoryCounts = Mapping[str, Mapping[str, int]]  # targets, by granularity and category: a manifest's counts


class ExpressionDraws:
    """Draws the expressions of records.

    Args:
        config: K, the share of parts, how kinds and categories are weighed.
        counts: `targets_by_category` of each set that is trained on; a category's frequency is that in all of them.
    """

    def __init__(self, config: DataConfig, counts: Iterable[CategoryCounts]) -> None:
        self._config = config
        self._category_weights = category_weights(counts, config.category_balance) if config.category_balance else None

    def draw(self, record: ImageRecord, random: np.random.Generator) -> list[tuple[Target, int]]:
        """Up to K (target, index of expression) without repeats: parts by `part_share`, others by their weights.

        Where one granularity has too few, the other fills up; a record with fewer than K expressions gives all it has.
        """
        pairs = list(record.pairs())
        parts = [p for p in pairs if p[0].granularity == "part"]
        objects = [p for p in pairs if p[0].granularity == "object"]
        k = min(self._config.expressions_per_image, len(pairs))
        # K·share is rounded by chance, so that a K of 1 too sees both granularities in the right proportion.
        wanted = int(k * self._config.part_share + random.random())
        num_parts = min(len(parts), max(wanted, k - len(objects)))
        drawn = self._draw(parts, num_parts, random) + self._draw(objects, k - num_parts, random)
        return [drawn[i] for i in random.permutation(len(drawn))]

    def _draw(
        self, pairs: list[tuple[Target, int]], count: int, random: np.random.Generator
    ) -> list[tuple[Target, int]]:
        if not self._config.kind_weights and self._category_weights is None:
            return [pairs[i] for i in random.permutation(len(pairs))[:count]]
        weights = np.array([self._weight(target, i) for target, i in pairs])
        # Exponential clocks: the `count` that ring first are a weighted draw without repeats; weight 0 rings last.
        with np.errstate(divide="ignore"):
            rings = random.exponential(size=len(pairs)) / weights
        return [pairs[i] for i in np.argsort(rings, kind="stable")[:count]]

    def _weight(self, target: Target, expression: int) -> float:
        weight = self._config.kind_weights.get(target.expressions[expression].kind, 1.0)
        if self._category_weights is not None:
            weight *= self._category_weights[target.granularity].get(target.category, 1.0)
        return weight


def category_weights(counts: Iterable[CategoryCounts], balance: float) -> dict[str, dict[str, float]]:
    """How many times as likely a target of each category is drawn, by granularity: (1/frequency)^balance.

    The mean over all targets of a granularity is 1, which is also what a category that was never counted gets.
    """
    totals: dict[str, Counter[str]] = {granularity: Counter() for granularity in GRANULARITIES}
    for of_set in counts:
        for granularity, numbers in of_set.items():
            totals[granularity].update(numbers)
    return {granularity: _balanced(+numbers, balance) for granularity, numbers in totals.items()}


def _balanced(numbers: Counter[str], balance: float) -> dict[str, float]:
    weights = {category: number**-balance for category, number in numbers.items()}
    total = sum(numbers[category] * weight for category, weight in weights.items())
    return {category: weight * numbers.total() / total for category, weight in weights.items()}
