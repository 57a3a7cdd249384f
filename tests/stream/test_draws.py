"""Which expressions of a record a batch takes."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mres.records import Expression, ImageRecord, Rle, Target
from mres.stream.config import DataConfig
from mres.stream.draws import ExpressionDraws, category_weights
from mres.stream.rng import rng

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
    return ExpressionDraws(DataConfig(**options), []).draw(of, rng(seed, "draw"))


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


# How many targets of each category two sets have: 1600 "common" objects, 400 "some", 100 "rare".
COUNTS = [
    {"object": {"common": 1000, "some": 400, "rare": 90}, "part": {"common:leg": 30}},
    {"object": {"common": 600, "rare": 10}, "part": {"rare:leg": 10}},
]


def of_categories(*categories: str) -> ImageRecord:
    """An object of each category, "a" and "b" in turn as its kind."""
    kinds = ("a", "b")
    targets = tuple(
        Target(f"o{i}", "object", category, MASK, (0, 0, 1, 1), (Expression(f"o {i}", kinds[i % 2]),))
        for i, category in enumerate(categories)
    )
    return ImageRecord("im", b"", 1, 1, "train", "made", targets)


@given(RECORDS, st.integers(1, 12), st.floats(0, 1), st.integers(0, 100), st.booleans())
def test_balance_zero_draws_bit_for_bit_what_no_counts_draw(
    of: ImageRecord, k: int, part_share: float, seed: int, weighted: bool
) -> None:
    options = {"expressions_per_image": k, "part_share": part_share, "kind_weights": {"": 2.0} if weighted else {}}
    config, key = DataConfig(**options, category_balance=0), (seed, "draw")
    drawn = ExpressionDraws(config, COUNTS).draw(of, rng(*key))
    assert drawn == reference(of, config, rng(*key))


def reference(record: ImageRecord, config: DataConfig, random: np.random.Generator) -> list[tuple[Target, int]]:
    """Draws without balance, as they have been since the first version."""

    def some(pairs: list[tuple[Target, int]], count: int) -> list[tuple[Target, int]]:
        if not config.kind_weights:
            return [pairs[i] for i in random.permutation(len(pairs))[:count]]
        weights = np.array([config.kind_weights.get(target.expressions[i].kind, 1.0) for target, i in pairs])
        rings = random.exponential(size=len(pairs)) / weights
        return [pairs[i] for i in np.argsort(rings, kind="stable")[:count]]

    pairs = list(record.pairs())
    parts, objects = ([p for p in pairs if p[0].granularity == g] for g in ("part", "object"))
    k = min(config.expressions_per_image, len(pairs))
    wanted = int(k * config.part_share + random.random())
    num_parts = min(len(parts), max(wanted, k - len(objects)))
    drawn = some(parts, num_parts) + some(objects, k - num_parts)
    return [drawn[i] for i in random.permutation(len(drawn))]


@pytest.mark.parametrize("balance", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("kind_weights", [{}, {"b": 2.0}])
def test_categories_are_drawn_by_their_rarity(balance: float, kind_weights: dict[str, float]) -> None:
    of = of_categories("common", "some", "rare", "common")
    config = DataConfig(expressions_per_image=1, part_share=0, category_balance=balance, kind_weights=kind_weights)
    draws = ExpressionDraws(config, COUNTS)
    counts = Counter(draws.draw(of, rng(seed, "draw"))[0][0].id for seed in range(4000))
    weights = np.array([number**-balance for number in (1600, 400, 100, 1600)])
    weights *= [1, kind_weights.get("b", 1), 1, kind_weights.get("b", 1)]
    expected = weights / weights.sum()
    found = np.array([counts[f"o{i}"] for i in range(4)]) / 4000
    assert np.abs(found - expected).max() < 4 * 0.5 / np.sqrt(4000)


@given(st.integers(1, 6), st.integers(0, 100), st.floats(0.01, 1))
def test_balanced_draws_have_no_repeats_and_depend_on_their_key_alone(k: int, seed: int, balance: float) -> None:
    of = of_categories("common", "common", "some", "rare", "never counted")
    draws = ExpressionDraws(DataConfig(expressions_per_image=k, category_balance=balance), COUNTS)
    drawn = draws.draw(of, rng(seed, "draw"))
    assert len({target.id for target, _ in drawn}) == len(drawn) == min(k, 5)
    assert draws.draw(of, rng(seed, "draw")) == drawn


CATEGORY_COUNTS = st.dictionaries(st.text(max_size=2), st.integers(1, 10**7), min_size=1, max_size=6)


@given(
    st.lists(st.fixed_dictionaries({"object": CATEGORY_COUNTS, "part": CATEGORY_COUNTS}), min_size=1), st.floats(0, 1)
)
def test_the_mean_weight_of_a_target_is_one_and_rarer_is_never_less_likely(counts: list, balance: float) -> None:
    for granularity, weights in category_weights(counts, balance).items():
        numbers = sum((Counter(of_set[granularity]) for of_set in counts), Counter())
        assert set(weights) == set(numbers)
        mean = sum(numbers[c] * weight for c, weight in weights.items()) / numbers.total()
        assert mean == pytest.approx(1)
        by_rarity = [weights[c] for c, _ in sorted(numbers.items(), key=lambda item: (item[1], item[0]))]
        assert all(rarer >= other * (1 - 1e-12) for rarer, other in itertools.pairwise(by_rarity))
    assert all(weight == pytest.approx(1) for weight in category_weights(counts, 0)["object"].values())


def test_category_weights_are_those_of_all_sets_together() -> None:
    weights = category_weights(COUNTS, 1)
    assert weights["object"]["rare"] / weights["object"]["common"] == pytest.approx(16)
    assert weights["part"]["rare:leg"] / weights["part"]["common:leg"] == pytest.approx(3)
    assert category_weights([], 1) == {"object": {}, "part": {}}
    assert category_weights([{"object": {"none": 0}}], 1)["object"] == {}, "a set may have counted nothing"
