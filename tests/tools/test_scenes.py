"""Procedural scenes: determinism, exact masks, and expressions re-read by a parser that shares no code with them."""

import colorsys
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from scenes import RELATIONAL_KINDS, SceneObject, SceneOptions, find_scene, scene, scenes
from scenes.layout import place_objects
from scenes.render import label_map, visible_masks
from scenes.shapes import CATEGORIES, unit_shape

from mres.errors import UserError
from mres.record_checks import record_from_json
from mres.record_json import record_to_json
from mres.records import ImageRecord, Target

Drawn = list[tuple[ImageRecord, tuple[SceneObject, ...]]]


def _draw(number: int, options: SceneOptions) -> Drawn:
    chosen = {"seed": 5, "split": "train", "options": options}
    return [(scene(i, **chosen), tuple(find_scene(i, **chosen).objects)) for i in range(number)]


@pytest.fixture(scope="module")
def default() -> Drawn:
    return _draw(120, SceneOptions())


@pytest.fixture(scope="module")
def relational() -> Drawn:
    return _draw(120, SceneOptions(relational_share=0.5, max_objects=6))


def _mask(target: Target) -> np.ndarray:
    decoded = coco_mask.decode({"size": [target.mask.height, target.mask.width], "counts": target.mask.counts})
    return decoded.astype(bool)


# --- determinism -----------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(index=st.integers(0, 10**9), seed=st.integers(0, 2**40), split=st.sampled_from(["train", "val", "größe"]))
def test_a_scene_depends_on_its_arguments_alone(index: int, seed: int, split: str) -> None:
    options = SceneOptions(image_size=64)
    first = scene(index, seed=seed, split=split, options=options)
    scene(index + 1, seed=seed, split=split, options=options)
    assert scene(index, seed=seed, split=split, options=options) == first


def test_records_drawn_in_any_order_are_those_of_the_stream() -> None:
    stream = list(scenes(6, seed=3, split="val"))
    assert [scene(i, seed=3, split="val") for i in (5, 0, 3)] == [stream[5], stream[0], stream[3]]


def test_seed_split_and_index_change_the_scene() -> None:
    places = [(0, "train", 0), (1, "train", 0), (0, "val", 0), (0, "train", 1)]
    images = {scene(index, seed=seed, split=split).image for seed, split, index in places}
    assert len(images) == len(places)


# --- masks -----------------------------------------------------------------------------------------------------------


def test_records_pass_the_checks_of_their_own_json_form(default: Drawn) -> None:
    for record, _ in default:
        assert record_from_json(record_to_json(record, "x.jpg"), record.image, "here") == record


def test_parts_lie_in_their_object_and_nothing_overlaps(default: Drawn) -> None:
    for record, _ in default:
        masks = {target.id: _mask(target) for target in record.targets}
        for granularity in ("object", "part"):
            same = [masks[t.id] for t in record.targets if t.granularity == granularity]
            assert np.sum(same, axis=0).max() <= 1
        for part in record.targets:
            if part.granularity == "part":
                assert part.parent is not None
                assert part.category.split(":")[0] in part.parent
                assert not (masks[part.id] & ~masks[part.parent]).any()


def test_parts_are_not_tiny_and_boxes_are_those_of_the_masks(default: Drawn) -> None:
    for record, _ in default:
        for target in record.targets:
            mask = _mask(target)
            assert mask.sum() >= 12
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            x, y, width, height = target.box
            assert (x, y, x + width, y + height) == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


@pytest.mark.parametrize("seed", range(8))
def test_an_object_is_the_union_of_its_visible_parts_and_the_later_one_is_on_top(seed: int) -> None:
    placed = place_objects(np.random.default_rng(seed), 0.3, SceneOptions())
    drawn = visible_masks(placed, *label_map(placed, 128))
    for thing, own in zip(placed, drawn, strict=True):
        assert (sum(part.mask_HW.astype(int) for part in own.parts) == own.mask_HW).all()
        assert {part.name for part in own.parts} == {piece.part for piece in thing.shape}
    assert drawn[-1].visible == 1
    alone = visible_masks(placed[:1], *label_map(placed[:1], 128))[0]
    hidden = alone.mask_HW & ~drawn[0].mask_HW
    assert not (drawn[0].mask_HW & ~alone.mask_HW).any()
    assert not (hidden & ~np.any([other.mask_HW for other in drawn[1:]], axis=0)).any()


MAIN_PART = {
    "car": "body",
    "house": "wall",
    "tree": "crown",
    "person": "torso",
    "boat": "hull",
    "flower": "petals",
    "cat": "body",
    "rocket": "body",
}
HUES = {"red": 0, "orange": 30, "yellow": 51, "green": 130, "blue": 219, "purple": 280}


def test_the_picture_shows_the_colour_that_the_text_says(default: Drawn) -> None:
    agree = []
    for record, objects in default:
        pixels = np.asarray(Image.open(io.BytesIO(record.image)))
        colours = {o.id: o.colour for o in objects}
        for target in record.targets:
            category, _, part = target.category.partition(":")
            if part and MAIN_PART[category] == part:
                assert target.parent is not None
                rgb = np.median(pixels[_mask(target)], axis=0) / 255
                hue = 360 * colorsys.rgb_to_hsv(*rgb)[0]
                nearest = min(HUES, key=lambda name: abs((hue - HUES[name] + 180) % 360 - 180))
                agree.append(nearest == colours[target.parent])
    assert len(agree) > 100
    assert np.mean(agree) > 0.98


@pytest.mark.parametrize("category", CATEGORIES)
def test_left_and_right_are_the_viewers_in_both_mirrorings(category: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        centres: dict[str, list[float]] = {}
        shape = unit_shape(category, rng)
        for piece in shape:
            centres.setdefault(piece.part, []).append(piece.points_N2[:, 0].mean())
        for name, values in centres.items():
            if name.startswith("left "):
                assert np.mean(values) < np.mean(centres[name.replace("left ", "right ")])


# --- expressions -----------------------------------------------------------------------------------------------------

COLOUR = "red|orange|yellow|green|blue|purple"
NOUN = "car|house|tree|person|boat|flower|cat|rocket"
PLURALS = {noun + "s": noun for noun in NOUN.split("|")} | {"people": "person"}
EXTREMES = {
    "left": "left|leftmost|furthest to the left|on the left",
    "right": "right|rightmost|furthest to the right|on the right",
    "top": "top|upper|topmost|highest|at the top",
    "bottom": "bottom|lower|bottommost|lowest|at the bottom",
    "middle": "middle|in the middle",
    "large": "large|big|larger|largest|biggest|bigger one of the|biggest of the",
    "small": "small|smaller|smallest|tiniest|smaller one of the|smallest of the",
}
WORD = {form: word for word, forms in EXTREMES.items() for form in forms.split("|")}
RELATIONS = {
    "left of": "left",
    "to the left of": "left",
    "right of": "right",
    "to the right of": "right",
    "above": "top",
    "higher than": "top",
    "below": "bottom",
    "lower than": "bottom",
    "next to": "near",
    "beside": "near",
    "closest to": "near",
}
AXIS = {"left": (0, -1), "right": (0, 1), "top": (1, -1), "bottom": (1, 1)}


@dataclass(frozen=True)
class Seen:
    """An object as the checker sees it: centre and size from its visible mask's box."""

    id: str
    category: str
    colour: str
    centre: tuple[float, float]
    size: float


def _seen(record: ImageRecord, objects: Sequence[SceneObject]) -> list[Seen]:
    boxes = {target.id: target.box for target in record.targets}
    seen = []
    for o in objects:
        x, y, w, h = boxes.get(
            o.id, tuple(v * record.width for v in (o.left, o.top, o.right - o.left, o.bottom - o.top))
        )
        side = record.width
        seen.append(Seen(o.id, o.category, o.colour, ((x + w / 2) / side, (y + h / 2) / side), (w * h) ** 0.5 / side))
    return seen


def _noun_phrase(text: str) -> tuple[str, str | None]:
    """(category, colour) of "[colour] noun", "noun that is colour", "colour coloured noun", also in the plural."""
    text = text.replace(" coloured", "").removesuffix(" in the picture")
    match = re.fullmatch(rf"(?:({COLOUR}) )?(\w+)(?: that is ({COLOUR}))?", text)
    assert match, text
    noun = PLURALS.get(match[2], match[2])
    assert noun in NOUN.split("|"), text
    return noun, match[1] or match[3]


def _who(text: str, seen: Sequence[Seen]) -> tuple[str, Seen]:
    """(kind, the one object) that a text names; fails unless exactly one fits, by a clear margin."""
    text = text.removeprefix("the ")
    for phrase, direction in sorted(RELATIONS.items(), key=lambda item: -len(item[0])):
        left, found, anchor = text.partition(f" {phrase} the ")
        if found:
            return "relation", _related(direction, _like(left, seen), _who(anchor, seen)[1])
    for form, word in sorted(WORD.items(), key=lambda item: -len(item[0])):
        rest = text.removeprefix(f"{form} ").removesuffix(f" {form}")
        if rest != text:
            return "size" if word in ("large", "small") else "position", _outermost(word, _like(rest, seen))
    like = _like(text, seen)
    assert len(like) == 1, text
    return "category" if _noun_phrase(text)[1] is None else "colour", like[0]


def _like(text: str, seen: Sequence[Seen]) -> list[Seen]:
    category, colour = _noun_phrase(text)
    return [o for o in seen if o.category == category and colour in (None, o.colour)]


def _outermost(word: str, like: Sequence[Seen]) -> Seen:
    assert len(like) >= 2
    if word in ("large", "small"):
        ranked = sorted(like, key=lambda o: o.size, reverse=word == "large")
        ratio = ranked[0].size / ranked[1].size
        assert max(ratio, 1 / ratio) >= 1.4 - 1e-9
        return ranked[0]
    if word == "middle":
        ranked = sorted(like, key=lambda o: o.centre[0])
        assert len(ranked) == 3
        assert min(np.diff([o.centre[0] for o in ranked])) >= 0.12 - 1e-9
        return ranked[1]
    axis, sign = AXIS[word]
    ranked = sorted(like, key=lambda o: -sign * o.centre[axis])
    assert sign * (ranked[0].centre[axis] - ranked[1].centre[axis]) >= 0.12 - 1e-9
    return ranked[0]


def _related(direction: str, like: Sequence[Seen], anchor: Seen) -> Seen:
    assert len(like) >= 2
    assert anchor.category != like[0].category
    if direction == "near":
        ranked = sorted(like, key=lambda o: np.hypot(*np.subtract(o.centre, anchor.centre)))
        near, next_near = (np.hypot(*np.subtract(o.centre, anchor.centre)) for o in ranked[:2])
        assert next_near >= near + 0.12 - 1e-9
        return ranked[0]
    axis, sign = AXIS[direction]
    ahead = {o.id: sign * (o.centre[axis] - anchor.centre[axis]) for o in like}
    fitting = [o for o in like if ahead[o.id] > 0]
    assert len(fitting) == 1
    assert ahead[fitting[0].id] >= 0.12 - 1e-9
    return fitting[0]


def _check_expression(text: str, kind: str, target: Target, seen: Sequence[Seen]) -> None:
    part, owner = None, text
    if target.granularity == "part":
        match = re.fullmatch(r"(?:the )?(?P<part>[a-z ]+?) of (?P<owner>the .+)", text)
        match = re.fullmatch(r"(?P<owner>.+)'s (?P<part>[a-z ]+)", text) or match
        assert match, text
        part, owner = match["part"], match["owner"]
    found_kind, found = _who(owner, seen)
    assert found_kind == kind
    assert found.id == (target.id if part is None else target.parent)
    if part is not None:
        assert target.category == f"{found.category}:{re.sub('^(left|right) ', '', part)}"
        assert target.id == f"{found.id}-{part.replace(' ', '-')}"


@pytest.mark.parametrize("name", ["default", "relational"])
def test_every_expression_names_its_target_and_nothing_else(name: str, request: pytest.FixtureRequest) -> None:
    drawn: Drawn = request.getfixturevalue(name)
    kinds: Counter[str] = Counter()
    for record, objects in drawn:
        seen = _seen(record, objects)
        texts = [target.expressions[index].text for target, index in record.pairs()]
        assert len(set(texts)) == len(texts)
        for target in record.targets:
            for expression in target.expressions:
                assert expression.text == expression.text.lower()
                _check_expression(expression.text, expression.kind, target, seen)
                kinds[f"{target.granularity} {expression.kind}"] += 1
    for kind in ("category", "colour", *RELATIONAL_KINDS):
        assert min(kinds[f"object {kind}"], kinds[f"part {kind}"]) >= 15


@pytest.mark.parametrize(("name", "share"), [("default", 0.25), ("relational", 0.5)])
def test_shares_and_counts_are_as_promised(name: str, share: float, request: pytest.FixtureRequest) -> None:
    records = [record for record, _ in request.getfixturevalue(name)]
    pairs = [(target, target.expressions[index]) for record in records for target, index in record.pairs()]
    assert np.mean([e.kind in RELATIONAL_KINDS for _, e in pairs]) == pytest.approx(share, abs=0.04)
    assert np.mean([target.granularity == "part" for target, _ in pairs]) == pytest.approx(0.5, abs=0.06)
    assert 16 <= len(pairs) / len(records) <= 32
    assert 4 <= np.mean([len(e.text.split()) for _, e in pairs]) <= 5.5
    assert len({target.category for target, _ in pairs if target.granularity == "object"}) == len(CATEGORIES)


def test_rivals_are_frequent_and_of_both_sorts(default: Drawn) -> None:
    by_category = [Counter(o.category for o in objects) for _, objects in default]
    by_colour = [Counter((o.category, o.colour) for o in objects) for _, objects in default]
    assert np.mean([max(counts.values()) >= 2 for counts in by_category]) > 0.5
    assert np.mean([max(counts.values()) >= 2 for counts in by_colour]) > 0.1
    assert all(2 <= len(objects) <= 5 for _, objects in default)


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [64, 200])
def test_the_image_size_is_that_of_image_and_masks(size: int) -> None:
    record = scene(0, seed=0, split="val", options=SceneOptions(image_size=size))
    assert Image.open(io.BytesIO(record.image)).size == (size, size)
    assert all(_mask(target).shape == (size, size) for target in record.targets)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"image_size": 8}, "image_size=8"),
        ({"min_objects": 1}, "min_objects=1"),
        ({"min_objects": 5, "max_objects": 4}, "max_objects=4"),
        ({"relational_share": 1.5}, "relational_share=1.5"),
    ],
)
def test_an_impossible_option_is_named(wrong: dict, named: str) -> None:
    with pytest.raises(UserError, match=re.escape(named)):
        SceneOptions(**wrong)


def test_impossible_arguments_are_named() -> None:
    with pytest.raises(UserError, match="index=-1"):
        scene(-1, seed=0, split="train")
    with pytest.raises(UserError, match="num_images=-3"):
        list(scenes(-3, seed=0, split="train"))


@settings(max_examples=12)
@given(
    size=st.integers(64, 160),
    low=st.integers(2, 6),
    more=st.integers(0, 4),
    share=st.floats(0, 0.7),
    index=st.integers(0, 99),
)
def test_every_allowed_option_gives_a_scene(size: int, low: int, more: int, share: float, index: int) -> None:
    options = SceneOptions(image_size=size, min_objects=low, max_objects=min(6, low + more), relational_share=share)
    objects = find_scene(index, seed=0, split="train", options=options).objects
    assert options.min_objects <= len(objects) <= options.max_objects
