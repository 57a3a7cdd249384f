"""Left and right in words: swapped where a side is meant; nothing is mirrored where words cannot be judged."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_jsonl import done
from scenes import scenes

import mres
from mres.pixels.text_flip import flip_text, is_flip_sensitive, judge, may_flip
from mres.stream.mirroring import describe


@pytest.mark.parametrize(
    ("text", "swapped"),
    [
        ("the left wheel of the right car", "the right wheel of the left car"),
        ("Leftmost person", "Rightmost person"),
        ("the left-hand door", "the right-hand door"),
        ("RIGHT HAND SIDE", "LEFT HAND SIDE"),
        ("on the left", "on the right"),
        ("left, then right.", "right, then left."),
        ("back_left_door", "back_right_door"),
        ("leftward arrow, rightwards", "rightward arrow, leftwards"),
        ("the righthand one", "the lefthand one"),
        ("leftside person", "rightside person"),
        ("left-side man", "right-side man"),
        ("2nd zebra from left", "2nd zebra from right"),
        ("the one left of the most right tree", "the one right of the most left tree"),
        ("guy on right in blue", "guy on left in blue"),
        ("man on the right behind the car", "man on the left behind the car"),
        ("the girl’s left arm", "the girl’s right arm"),
    ],
)
def test_flips_flip_text(text: str, swapped: str) -> None:
    assert flip_text(text) == swapped
    assert flip_text(swapped) == text
    assert is_flip_sensitive(text)
    assert judge(text).kind == "swaps"
    assert may_flip([text], [text])


@pytest.mark.parametrize(
    "text", ["the bright car", "upright bottle", "leftover pizza", "a copyright sign", "cleft", "top"]
)
def test_flips_leave_other_words_alone(text: str) -> None:
    assert flip_text(text) == text
    assert not is_flip_sensitive(text)


@given(st.text(st.sampled_from("left rightLEFTmostbr-_,."), max_size=30))
def test_swapping_twice_is_nothing(text: str) -> None:
    assert flip_text(flip_text(text)) == text


def listed(texts: str) -> list[str]:
    return [text.strip() for text in texts.replace("\n", "|").split("|") if text.strip()]


OTHER_LANGUAGES = """
左边的红色盒子 | 左邊的紅色盒子 | 最右側的車 | 右から二番目の人 | ひだりのくるま | 왼쪽 자동차 | बाईं ओर की कार | दाहिना पहिया
السيارة على اليسار | الباب الأيمن | বাম দিকের গাড়ি | بائیں طرف کی گاڑی | машина слева | ліва машина | αριστερό αυτοκίνητο
המכונית השמאלית | รถทางซ้าย | เก้าอี้ด้านขวา | xe bên trái | la voiture de gauche | roue droite | das linke Auto | Tür rechts
el coche de la izquierda | coche derecho | o carro da esquerda | roda direita | mobil sebelah kiri | roda kanan | soldaki araba
sağdaki kapı | l'auto a sinistra | ruota destra | de linker auto | lewy samochód | prawe kolo | vänster bil | bil til hojre
auto vasemmalla | a bal oldali auto | levé auto | lijevi automobil | masina din stanga | ezkerreko auto gorria | gari la kushoto
kaliwa na kotse | baayein taraf ki gaadi | hidari no kuruma | zuobian de che | café table on the left
"""
HANDED_WORDS = """
port side of the ship | starboard wing | the driver's side door | passenger side mirror | hand pointing to 9 o'clock | 3 o clock
arrow turning clockwise | the counter-clockwise arrow | the nearside wheel | southpaw pitcher
east coast on the map | the western state | north-west corner | NW corner | southeast | the westbound train | the map on the wall
the sign that says STOP | letter b | number 7 | player 24 | bus with the word "taxi" | the “exit” sign | jersey #9 | 12:30 clock
man in the 'nike' shirt | sign reading no parking | b on the wall | the s-shaped road | boeing 747
lft guy | far rt | rgt car | rigth one | leftt | lef person | right most, lfet | FL wheel | lhs | the L door | lefty | rightish
bottomleft kid | topright | frontLeft
second zebra | the last slice | 3rd person | first guy | back row, second person | 2nd cow in back | second bottle on the shelf
car right behind the bus | person right next to the tree | right in the middle | the slice that is left | right-side up cup
the person who just left | half left of the pizza | the right answer | left-overs | right triangle | driver's door | near side mirror
the n.w. corner
→ car | the <- one | 👈 this car | ⬅ door
"""


@pytest.mark.parametrize("text", listed(OTHER_LANGUAGES + HANDED_WORDS))
def test_what_cannot_be_judged_is_not_mirrored(text: str) -> None:
    assert not may_flip(["the red car", text], ["the red car", text])
    assert is_flip_sensitive(text)
    assert judge(text).why


PLAIN_ENGLISH = """
the van | 2 people | black n white cow | man w/ hat | don't know | the man's shirt | t-shirt guy | stop sign | third floor window
the tight jeans | license plate | the clock | half the pizza | eight zebras | easter egg | the rectangular box | the driver
person – in red | the boys’ hats | third row | second from the top
"""


@pytest.mark.parametrize("text", listed(PLAIN_ENGLISH))
def test_plain_english_is_mirrored(text: str) -> None:
    assert not is_flip_sensitive(text)
    assert may_flip([text], [text, "the man"])


def test_without_a_known_word_another_expression_must_be_english() -> None:
    assert judge("axolotl").kind == judge("kotak merah").kind == "unknown"
    assert not may_flip(["axolotl"], ["axolotl", "kotak merah"])
    assert may_flip(["axolotl"], ["axolotl", "the axolotl"])
    assert may_flip(["the axolotl"], ["the axolotl", "左边"]), "what is not drawn does not count"


def test_what_the_demo_says_is_mirrored_as_before() -> None:
    """Golden losses stand on it."""
    for scene in scenes(40, seed=5, split="train"):
        texts = [expression.text for target in scene.targets for expression in target.expressions]
        assert may_flip(texts, texts)
        for text in texts:
            assert (judge(text).kind == "swaps") == ("left" in text or "right" in text), text


def test_the_command_says_what_forbids(tmp_path: Path) -> None:
    pixels_HWC, everything_HW = np.zeros((8, 8, 3), np.uint8), np.ones((8, 8), bool)
    said = [["the cat", "cat"], ["the cat on the left", "左边的猫", "la chatte de gauche"], ["axolotl"]]
    records = [mres.record(pixels_HWC, {tuple(texts): everything_HW}, id=texts[0]) for texts in said]
    mres.write_shards(records, tmp_path / "out")
    value = describe(str(tmp_path / "out"))
    assert value["expressions"] == {"neutral": 2, "swaps": 1, "forbids": 2, "unknown": 1}
    assert value["examples"] == {"another language": ["左边的猫", "la chatte de gauche"]}
    assert (value["images"], value["images_that_stay"]) == (3, 2)
    printed = done(tmp_path, "info", "out", "--mirroring")
    assert "another language: 2, such as '左边的猫'; 'la chatte de gauche'" in printed
    assert "2 of 3" in printed
