"""Which K expressions of a record a batch takes."""

import numpy as np

from mres.records import ImageRecord, Target
from mres.stream.config import DataConfig


def draw_expressions(record: ImageRecord, config: DataConfig, random: np.random.Generator) -> list[tuple[Target, int]]:
    """Up to K (target, index of expression) without repeats: parts by `part_share`, kinds by `kind_weights`.

    Where one granularity has too few, the other fills up; a record with fewer than K expressions gives all it has.
    """
    pairs = list(record.pairs())
    parts = [p for p in pairs if p[0].granularity == "part"]
    objects = [p for p in pairs if p[0].granularity == "object"]
    k = min(config.expressions_per_image, len(pairs))
    # K·share is rounded by chance, so that a K of 1 too sees both granularities in the right proportion.
    wanted = int(k * config.part_share + random.random())
    num_parts = min(len(parts), max(wanted, k - len(objects)))
    drawn = _draw(parts, num_parts, config, random) + _draw(objects, k - num_parts, config, random)
    return [drawn[i] for i in random.permutation(len(drawn))]


def _draw(
    pairs: list[tuple[Target, int]], count: int, config: DataConfig, random: np.random.Generator
) -> list[tuple[Target, int]]:
    if not config.kind_weights:
        return [pairs[i] for i in random.permutation(len(pairs))[:count]]
    weights = np.array([config.kind_weights.get(target.expressions[i].kind, 1.0) for target, i in pairs])
    # Exponential clocks: the `count` that ring first are a weighted draw without repeats; weight 0 rings last.
    with np.errstate(divide="ignore"):
        rings = random.exponential(size=len(pairs)) / weights
    return [pairs[i] for i in np.argsort(rings, kind="stable")[:count]]
