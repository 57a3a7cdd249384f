"""COCO instances: nouns of all sets, groups, crowds, boxes without masks; and nouns that the texts are made of."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_coco import annotation, area_of, by_id, only_record, open_weights, rectangle, run_lengths, texts, write_coco

from mres.errors import UserError
from mres.sources.coco_expressions import (
    category_expressions,
    noun_of,
    part_expressions,
    plural,
    position_words,
    possessive,
)

CATEGORIES = ["person", "traffic light", "Cabinet/shelf"]
PERSON, LIGHT, CABINET = 1, 2, 3


def test_single_objects_and_groups(tmp_path: Path) -> None:
    items = [annotation(i, PERSON, [rectangle(x, 5, 3, 10)], iscrowd=0) for i, x in enumerate([2, 15, 17, 30], start=1)]
    items += [annotation(9, LIGHT, [rectangle(0, 0, 2, 4)]), annotation(10, CABINET, [rectangle(8, 0, 2, 4)])]
    source = open_weights("instances", *write_coco(tmp_path, CATEGORIES, items))
    record = only_record(source)
    assert record.id == "000000000001"
    assert {t.id: (texts(t)[0], area_of(t)) for t in record.targets} == {
        "person": ("the people", 30 * 4 - 10),
        "person.1": ("the leftmost person", 30),
        "person.4": ("the rightmost person", 30),
        "traffic light": ("the traffic light", 8),
        "cabinet": ("the cabinet", 8),
    }
    assert {t.granularity for t in record.targets} == {"object"}
    assert source.notes == {"instances that nothing but their group refers to": 2}


def test_a_crowd_is_told_as_a_whole(tmp_path: Path) -> None:
    crowd = {"size": [20, 40], "counts": run_lengths(20, 0, 10, 10)["counts"]}
    items = [annotation(1, PERSON, [rectangle(0, 0, 5, 10)], iscrowd=0), annotation(2, PERSON, crowd, iscrowd=1)]
    source = open_weights("instances", *write_coco(tmp_path, CATEGORIES, items))
    assert {t.id: (texts(t)[0], area_of(t)) for t in only_record(source).targets} == {"person": ("the people", 150)}
    assert source.notes == {"groups with a crowd region, referred to as a whole only": 1}


def test_a_crowd_alone_is_plural(tmp_path: Path) -> None:
    items = [
        annotation(2, LIGHT, run_lengths(20, 0, 10, 10), iscrowd=1),
        annotation(1, CABINET, [rectangle(0, 0, 5, 9)]),
    ]
    record = only_record(open_weights("instances", *write_coco(tmp_path, CATEGORIES, items)))
    assert texts(by_id(record)["traffic light"]) == ["the traffic lights", "traffic lights"]


def test_slivers_are_left_out(tmp_path: Path) -> None:
    items = [annotation(1, PERSON, [rectangle(0, 0, 5, 10), [1, 2, 3, 4]]), annotation(2, PERSON, [[1, 2, 3, 4]])]
    source = open_weights("instances", *write_coco(tmp_path, CATEGORIES, items))
    assert texts(only_record(source).targets[0]) == ["the person", "person"]
    assert sum(source.notes.values()) == 3


def test_boxes_without_masks_are_refused(tmp_path: Path) -> None:
    item = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "iscrowd": 0, "isfake": 0, "area": 16}
    options = write_coco(tmp_path, CATEGORIES, [item], ("images/v1/patch8/objects365_v1_00420917.jpg",))
    with pytest.raises(UserError, match=r"has 1 annotations and none has a mask .*promptable segmenter, as MRES-32M's"):
        open_weights("instances", *options)


@pytest.mark.parametrize("stored", ["images/v1/patch8/o_1.jpg", "patch8/o_1.jpg", "o_1.jpg"])
def test_images_lie_below_any_of_their_folders(stored: str, tmp_path: Path) -> None:
    items = [annotation(1, PERSON, [rectangle(0, 0, 5, 10)])]
    options = write_coco(tmp_path, CATEGORIES, items, ("images/v1/patch8/o_1.jpg",), stored=(stored,))
    record = only_record(open_weights("instances", *options))
    assert (record.id, record.image) == ("o_1", (tmp_path / "images" / stored).read_bytes())


def test_a_category_without_a_noun_is_refused(tmp_path: Path) -> None:
    options = write_coco(tmp_path, [*CATEGORIES, "(x)"], [annotation(1, PERSON, [rectangle(0, 0, 5, 10)])])
    with pytest.raises(UserError, match=r"nothing can be called '\(x\)'"):
        open_weights("instances", *options)


@pytest.mark.parametrize(
    ("name", "noun"),
    [
        ("wheel_(car)", "wheel"),
        ("tape_(sticky_cloth_or_paper)", "tape"),
        ("mouse (computer equipment)", "mouse"),
        ("television_set", "television set"),
        ("Cabinet/shelf", "cabinet"),
        ("Wine Glass", "wine glass"),
        ("other(color)", "other"),
        ("SUV", "SUV"),
        ("TV/monitor", "TV"),
        ("N/A", "N/A"),
        ("A/C unit", "A/C unit"),
        ("FRONT_BUMPER", "front bumper"),
        ("iPhone", "iPhone"),
        ("汽车", "汽车"),
    ],
)
def test_nouns(name: str, noun: str) -> None:
    assert noun_of(name) == noun


@pytest.mark.parametrize(
    ("noun", "several", "of_one"),
    [
        ("car", "cars", "car's"),
        ("person", "people", "person's"),
        ("wine glass", "wine glasses", "wine glass'"),
        ("bus", "buses", "bus'"),
        ("scissors", "scissors", "scissors'"),
        ("computer mouse", "computer mice", "computer mouse's"),
        ("teddy bear", "teddy bears", "teddy bear's"),
        ("key", "keys", "key's"),
        ("body", "bodies", "body's"),
        ("sandwich", "sandwiches", "sandwich's"),
        ("foot", "feet", "foot's"),
        ("teeth", "teeth", "teeth's"),
        ("sheep", "sheep", "sheep's"),
        ("SUV", "SUVs", "SUV's"),
        ("flat-screen TV", "flat-screen TVs", "flat-screen TV's"),
        ("GPS", "GPS", "GPS's"),
    ],
)
def test_plurals_and_possessives(noun: str, several: str, of_one: str) -> None:
    assert (plural(noun), possessive(noun)) == (several, of_one)


@pytest.mark.parametrize("noun", ["汽车", "N/A", "машина", "Türgriff", "type 2", "c++"])
def test_no_english_ending_is_put_to_what_is_no_english_word(noun: str) -> None:
    assert plural(noun) == noun
    said = {e.text for e in (*category_expressions(noun, None, several=True), *part_expressions("wheel", noun))}
    assert said == {f"the {noun}", noun, f"wheel of the {noun}", f"the wheel of the {noun}"}


@pytest.mark.parametrize(
    "name", ["Left_Mirror", "leftmost wheel", "RIGHT door", "mirror (left)", "wheel_FL", "LH door"]
)
def test_a_name_that_says_a_side_is_given_no_other(name: str) -> None:
    assert position_words(name, [(0, 0, 5, 5), (90, 0, 5, 5)], 100) == {}
    assert position_words("bright light", [(0, 0, 5, 5), (90, 0, 5, 5)], 100) == {0: "left", 1: "right"}


@given(st.lists(st.tuples(st.integers(0, 34), st.integers(0, 14)), min_size=1, max_size=6))
def test_every_instance_is_in_the_group_and_no_text_stands_for_two(
    tmp_path_factory: pytest.TempPathFactory, corners: list[tuple[int, int]]
) -> None:
    items = [annotation(i, PERSON, run_lengths(x, y, 6, 6)) for i, (x, y) in enumerate(corners, start=1)]
    record = only_record(open_weights("instances", *write_coco(tmp_path_factory.mktemp("set"), CATEGORIES, items)))
    covered = {(x + dx, y + dy) for x, y in corners for dx in range(6) for dy in range(6)}
    assert area_of(by_id(record)["person"]) == len(covered)
    said = [text for target in record.targets for text in texts(target)]
    assert len(said) == len(set(said))
    leftmost = [t for t in record.targets if texts(t)[0] in ("the left person", "the leftmost person")]
    assert all(t.box[0] == min(x for x, _ in corners) for t in leftmost)
