"""Which expressions of a record a batch takes."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mres.records import Expression, ImageRecord, Rle, Target
from mres.stream.config import DataConfig
from mres.stream.draws import draw_expressions
from mres.stream.order import rng

MASK = Rle(1, 1, b"01")


def record(num_objects: int, num_parts: int, kinds: tuple[str, ...] = ("",)) -> ImageRecord:
    """One target an expression; kinds go round."""
    pairs = [("object", i) for i in range(num_objects)] + [("part", i) for i in range(num_parts)]
    targets = tuple(
        Target(f"{g}{i}", g, "c", MASK, (0, 0, 1, 1), (Expression(f"{g} {i}", kinds[i % len(kinds)]),))
        for g, i in pairs
    )
    return ImageRecord("im", b"", 1, 1, "train", "made", targets)


def draw(of: ImageRecord, seed: int = 0, **options) -> list[tuple[Target, int]]:
    return draw_expressions(of, DataConfig(**options), rng(seed, "draw"))


RECORDS = st.builds(record, st.integers(0, 8), st.integers(0, 8)).filter(lambda r: r.num_expressions > 0)


@given(RECORDS, st.integers(1, 12), st.floats(0, 1), st.integers(0, 100), st.booleans())
def test_k_without_repeats(of: ImageRecord, k: int, part_share: float, seed: int, weighted: bool) -> None:
    options = {"expressions_per_image": k, "part_share": part_share, "kind_weights": {"": 2.0} if weighted else {}}
    drawn = draw(of, seed, **options)
    assert len(drawn) == min(k, of.num_expressions)
    assert len({(target.id, i) for target, i in drawn}) == len(drawn)
    assert draw(of, seed, **options) == drawn, "the key decides"
    parts, objects = (sum(t.granularity == g for t, _ in drawn) for g in ("part", "object"))
    num_parts = sum(t.granularity == "part" for t in of.targets)
    wanted = len(drawn) * part_share
    low, high = len(drawn) - (len(of.targets) - num_parts), num_parts  # what the record's own parts and objects allow
    assert min(max(np.floor(wanted), low), high) <= parts <= max(min(np.ceil(wanted), high), low)
    assert parts + objects == len(drawn)


@pytest.mark.parametrize(("k", "part_share"), [(1, 0.5), (1, 0.3), (3, 0.5), (5, 0.85), (4, 0.0), (4, 1.0)])
def test_part_share_on_average(k: int, part_share: float) -> None:
    of = record(10, 10)
    draws = [draw(of, seed, expressions_per_image=k, part_share=part_share) for seed in range(1500)]
    parts = sum(target.granularity == "part" for drawn in draws for target, _ in drawn)
    assert abs(parts / (1500 * k) - part_share) < 4 * 0.5 / np.sqrt(1500 * k)


def test_every_pair_and_every_order_is_as_likely() -> None:
    of = record(4, 0)
    draws = [draw(of, seed, expressions_per_image=2, part_share=0) for seed in range(3000)]
    orders = Counter(tuple(target.id for target, _ in drawn) for drawn in draws)
    assert len(orders) == 12
    assert min(orders.values()) > 3000 / 12 * 0.7


def test_kinds_are_drawn_by_weight() -> None:
    of = record(12, 0, kinds=("common", "rare", "never"))
    weights = {"rare": 3.0, "never": 0.0}
    counts: Counter[str] = Counter()
    for seed in range(2000):
        for target, i in draw(of, seed, expressions_per_image=1, part_share=0, kind_weights=weights):
            counts[target.expressions[i].kind] += 1
    assert counts["never"] == 0
    assert abs(counts["rare"] / 2000 - 0.75) < 0.05


def test_weight_zero_is_drawn_only_where_nothing_else_is_left() -> None:
    of = record(4, 0, kinds=("a", "never"))
    drawn = draw(of, expressions_per_image=2, part_share=0, kind_weights={"never": 0})
    assert {target.expressions[i].kind for target, i in drawn} == {"a"}
    assert len(draw(of, expressions_per_image=4, part_share=0, kind_weights={"never": 0})) == 4
