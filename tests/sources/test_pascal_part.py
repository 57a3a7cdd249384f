"""Pascal-Part as VLPart writes it: parts without a link to their object."""

from pathlib import Path

import pytest
from made_coco import annotation, area_of, by_id, only_record, open_weights, run_lengths, texts, write_coco

from mres.errors import UserError

CATEGORIES = ["person:head", "person:leg", "bus:license plate", "person"]
HEAD, LEG, PLATE, PERSON = range(1, 5)
NAMES = ("2008_000002.jpg",)


def test_parts_without_objects_are_told_together(tmp_path: Path) -> None:
    items = [
        annotation(0, LEG, run_lengths(0, 8, 3, 6), iscrowd=0),
        annotation(1, HEAD, run_lengths(2, 0, 4, 4), iscrowd=0),
        annotation(2, LEG, run_lengths(5, 8, 3, 6), iscrowd=0),
        annotation(3, LEG, run_lengths(30, 8, 3, 6), iscrowd=0),
        annotation(4, PLATE, run_lengths(20, 0, 3, 2), iscrowd=0),
    ]
    source = open_weights("pascalpart", *write_coco(tmp_path, CATEGORIES[:3], items, NAMES))
    record = only_record(source)
    assert (record.id, record.source) == ("2008_000002", "pascal-part")
    found = by_id(record)
    assert {id_: (texts(t)[0], area_of(t), t.granularity, t.parent) for id_, t in found.items()} == {
        "person:leg": ("the person legs", 54, "part", None),
        "person:leg.0": ("the leftmost person leg", 18, "part", None),
        "person:leg.2": ("the rightmost person leg", 18, "part", None),
        "person:head": ("head of the person", 16, "part", None),
        "bus:license plate": ("license plate of the bus", 6, "part", None),
    }
    assert {t.category for t in record.targets} == {"person:leg", "person:head", "bus:license plate"}
    assert source.notes == {"instances that nothing but their group refers to": 1}


def test_parts_belong_to_the_object_that_holds_them(tmp_path: Path) -> None:
    items = [
        annotation(1, PERSON, run_lengths(0, 0, 10, 20)),
        annotation(2, PERSON, run_lengths(25, 0, 10, 20)),
        annotation(3, HEAD, run_lengths(24, 0, 6, 4)),  # 5/6 inside
        annotation(4, LEG, run_lengths(1, 10, 2, 10)),
        annotation(5, LEG, run_lengths(5, 10, 2, 10)),
        annotation(6, LEG, run_lengths(15, 10, 2, 10)),  # in neither
    ]
    source = open_weights("pascalpart", *write_coco(tmp_path, CATEGORIES, items, NAMES))
    found = by_id(only_record(source))
    assert {id_: (texts(t)[0], area_of(t), t.parent) for id_, t in found.items()} == {
        "person": ("the people", 400, None),
        "person.1": ("the left person", 200, None),
        "person.1:leg": ("leg of the left person", 40, "person.1"),
        "person.2": ("the right person", 200, None),
        "person.2:head": ("head of the right person", 24, "person.2"),
    }
    assert source.notes["parts that lie in no object of their kind, left out"] == 1


def test_what_is_not_pascal_part_is_refused(tmp_path: Path) -> None:
    options = write_coco(tmp_path, ["person", "car"], [annotation(1, 1, run_lengths(0, 0, 2, 2))])
    with pytest.raises(UserError, match=r"no category is 'object:part' \(it has person, car …\)"):
        open_weights("pascalpart", *options)
