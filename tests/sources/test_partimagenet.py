"""PartImageNet: super-categories, their parts' union as the object, slivers, classes by name."""

from pathlib import Path

import pytest
from made_coco import annotation, area_of, by_id, only_record, open_weights, rectangle, run_lengths, texts, write_coco

from mres.errors import UserError

CATEGORIES = ["Quadruped Head", "Quadruped Foot", "Car Tier", "Car Side Mirror", "Quadruped", "Biped Head"]
HEAD, FOOT, TIER, MIRROR, QUADRUPED, BIPED_HEAD = range(1, 7)
NAMES = ("n02129604_1234.JPEG",)
FEET = [rectangle(2, 16, 2, 3), rectangle(10, 16, 2, 3)]
TIGER = [annotation(0, HEAD, [rectangle(1, 2, 6, 6)]), annotation(1, FOOT, FEET)]


def test_the_object_is_the_union_of_its_parts(tmp_path: Path) -> None:
    source = open_weights("partimagenet", *write_coco(tmp_path, CATEGORIES, TIGER, NAMES))
    record = only_record(source)
    assert (record.id, record.source, record.split) == ("n02129604_1234", "partimagenet", "train")
    found = by_id(record)
    assert {id_: (texts(t), area_of(t), t.parent) for id_, t in found.items()} == {
        "quadruped": (["the quadruped", "quadruped"], 48, None),
        "quadruped:head": (
            ["head of the quadruped", "the head of the quadruped", "the quadruped's head"],
            36,
            "quadruped",
        ),
        "quadruped:foot": (
            ["feet of the quadruped", "the feet of the quadruped", "the quadruped's feet"],
            12,
            "quadruped",
        ),
    }
    assert not source.notes


@pytest.mark.parametrize(("wholes", "text"), [([(0, 0)], "the quadruped"), ([(0, 0), (20, 0)], "the quadrupeds")])
def test_masks_of_the_whole_win(wholes: list[tuple[int, int]], text: str, tmp_path: Path) -> None:
    items = [annotation(2 + i, QUADRUPED, run_lengths(*corner, 5, 20)) for i, corner in enumerate(wholes)]
    found = by_id(only_record(open_weights("partimagenet", *write_coco(tmp_path, CATEGORIES, [*TIGER, *items], NAMES))))
    assert area_of(found["quadruped"]) == 100 * len(wholes)  # though the head reaches out of it
    assert texts(found["quadruped"])[0] == text


def test_two_heads_are_two_animals(tmp_path: Path) -> None:
    items = [*TIGER, annotation(2, HEAD, [rectangle(20, 2, 6, 6)])]
    found = by_id(only_record(open_weights("partimagenet", *write_coco(tmp_path, CATEGORIES, items, NAMES))))
    assert texts(found["quadruped"])[0] == "the quadrupeds"
    assert texts(found["quadruped:head"])[0] == "heads of the quadrupeds"
    assert area_of(found["quadruped:head"]) == 72


def test_the_files_spelling_of_tires(tmp_path: Path) -> None:
    items = [annotation(1, TIER, [rectangle(2, 16, 3, 3)]), annotation(2, MIRROR, [rectangle(1, 2, 2, 2)])]
    found = by_id(only_record(open_weights("partimagenet", *write_coco(tmp_path, CATEGORIES, items, NAMES))))
    assert list(found) == ["car", "car:tire", "car:side mirror"]
    assert texts(found["car:tire"])[0] == "tire of the car"


def test_slivers_are_left_out(tmp_path: Path) -> None:
    items = [annotation(0, HEAD, [rectangle(1, 2, 6, 6), [3, 4], [1, 2, 3, 4]]), annotation(1, FOOT, [[5, 5]])]
    source = open_weights("partimagenet", *write_coco(tmp_path, CATEGORIES, items, NAMES))
    assert list(by_id(only_record(source))) == ["quadruped", "quadruped:head"]
    assert source.notes == {
        "polygons of fewer than three points, left out": 3,
        "masks that cover no pixel, left out": 1,
    }


@pytest.mark.parametrize("stored", ["n02129604/n02129604_1234.JPEG", "n02129604_1234.JPEG"])
def test_images_lie_flat_or_in_a_folder_a_class(stored: str, tmp_path: Path) -> None:
    options = write_coco(tmp_path, CATEGORIES, TIGER, NAMES, stored=(stored,))
    assert only_record(open_weights("partimagenet", *options)).image == (tmp_path / "images" / stored).read_bytes()


def test_classes_are_called_by_name(tmp_path: Path) -> None:
    (tmp_path / "synsets.txt").write_text("n01440764 tench, Tinca tinca\nn02129604 tiger, Panthera tigris\n")
    options = [*write_coco(tmp_path, CATEGORIES, TIGER, NAMES), "--synsets", str(tmp_path / "synsets.txt")]
    found = by_id(only_record(open_weights("partimagenet", *options)))
    assert list(found) == ["tiger", "tiger:head", "tiger:foot"]
    assert texts(found["tiger"]) == ["the tiger", "tiger", "the quadruped", "quadruped"]
    assert texts(found["tiger:head"])[::3] == ["head of the tiger", "head of the quadruped"]
    assert found["tiger:head"].parent == "tiger"


def test_a_class_names_no_super_category_of_several(tmp_path: Path) -> None:
    (tmp_path / "synsets.txt").write_text("n02129604 tiger, Panthera tigris\n")
    items = [*TIGER, annotation(2, BIPED_HEAD, [rectangle(20, 2, 6, 6)])]
    options = [*write_coco(tmp_path, CATEGORIES, items, NAMES), "--synsets", str(tmp_path / "synsets.txt")]
    found = by_id(only_record(open_weights("partimagenet", *options)))
    assert list(found) == ["quadruped", "quadruped:head", "quadruped:foot", "biped", "biped:head"]


def test_what_is_not_partimagenet_is_refused(tmp_path: Path) -> None:
    options = write_coco(tmp_path, [*CATEGORIES, "person:head"], TIGER, NAMES)
    with pytest.raises(UserError, match="category 'person:head' begins with none of Quadruped, Biped"):
        open_weights("partimagenet", *options)
    options = write_coco(tmp_path, CATEGORIES, TIGER, NAMES)
    (tmp_path / "synsets.txt").write_text("n01440764 tench, Tinca tinca\n")
    with pytest.raises(UserError, match=r"has no line for 'n02129604', the class of 'n02129604_1234.JPEG'"):
        open_weights("partimagenet", *options, "--synsets", str(tmp_path / "synsets.txt"))
    with pytest.raises(UserError, match=r"cannot read '/nowhere' \(--synsets\)"):
        open_weights("partimagenet", *options, "--synsets", "/nowhere")
