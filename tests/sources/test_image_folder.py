"""Names of images as tools write them on other systems: found within the folder, or named with what was tried."""

import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from mres.records import RecordError
from mres.sources.image_folder import ELSEWHERE, ImageFolder, plain_path

ACCENTED = "Capture_décran.jpg"


def folder_with(root: Path, *names: str) -> Path:
    for name in names:
        place = root / "images" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(name)
    return root / "images"


def found(folder: Path, name: str, *others: str) -> str:
    return str(ImageFolder(folder, [name, *others], Counter()).find(name, "here").relative_to(folder))


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("images\\im0.jpg", "im0.jpg"),
        ("..\\..\\label-studio\\media\\upload\\4\\im0.jpg", "im0.jpg"),
        ("../../label-studio/media/upload/4/im0.jpg", "upload/4/im0.jpg"),
        ("/home/someone/images/im0.jpg", "im0.jpg"),
        ("D:\\data\\im0.jpg", "im0.jpg"),
        ("\\\\nas\\share\\im0.jpg", "im0.jpg"),
        ("/data/local-files/?d=images/im0.jpg", "images/im0.jpg"),
        ("/data/local-files/?d=images%5Cim0.jpg", "images/im0.jpg"),
        ("http://localhost:8080/data/upload/1/im0.jpg?v=2", "upload/1/im0.jpg"),
        ("s3://bucket/my%20set/im0.jpg?x=1", "my set/im0.jpg"),
        ("file:///D:/my%20set/im0.jpg", "my set/im0.jpg"),
        ("my%20photo.jpg", "my photo.jpg"),
        ("a/Capture_d%C3%A9cran.jpg", f"a/{ACCENTED}"),
        (unicodedata.normalize("NFD", ACCENTED), ACCENTED),
        (ACCENTED, unicodedata.normalize("NFD", ACCENTED)),
        ("im0.jpg", "train/deep/im0.jpg"),
        ("/x/train/im0.jpg", "set/train/im0.jpg"),
    ],
)
def test_names_of_other_systems(name: str, file: str, tmp_path: Path) -> None:
    folder, notes = folder_with(tmp_path, file, "other.jpg"), Counter[str]()
    assert ImageFolder(folder, [name], notes).find(name, "here") == folder / file
    assert notes == {ELSEWHERE: 1}


@pytest.mark.parametrize("name", ["im0.jpg", "images/v1/im0.jpg", "my%20photo.jpg", "a\\b.jpg", "q?d=1.jpg"])
def test_a_name_is_first_taken_as_it_stands(name: str, tmp_path: Path) -> None:
    folder, notes = folder_with(tmp_path, Path(name).name, "my photo.jpg", "b.jpg"), Counter[str]()
    assert ImageFolder(folder, [name], notes).find(name, "here") == folder / Path(name).name
    assert not notes[ELSEWHERE]


def test_what_lies_outside_is_never_taken(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "in.jpg")
    (tmp_path / "im0.jpg").write_text("outside")
    for name in (
        "../im0.jpg",
        str(tmp_path / "im0.jpg"),
        "..\\im0.jpg",
        "%2e%2e/im0.jpg",
        "a/../../im0.jpg",
        "x\0.jpg",
    ):
        with pytest.raises(RecordError, match="No such file"):
            found(folder, name)


def test_several_candidates_are_named(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "a/im0.jpg", "b/im0.jpg")
    with pytest.raises(RecordError, match=r"'im0.jpg' may be any of 2 files in .*: 'a/im0.jpg', 'b/im0.jpg'"):
        found(folder, "im0.jpg")
    assert found(folder, "/home/b/im0.jpg") == "b/im0.jpg"


def test_two_images_never_share_a_file(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "im0.jpg", "b/im1.jpg", "c/d/im0.jpg", "my photo.jpg")
    with pytest.raises(RecordError, match="No such file"):
        found(folder, "a/im0.jpg", "b/im0.jpg")
    assert found(folder, "/home/x/d/im0.jpg", "/home/x/a/im0.jpg") == "c/d/im0.jpg"
    with pytest.raises(RecordError, match="No such file"):
        found(folder, "my%20photo.jpg", "my photo.jpg")


def test_what_was_tried_is_said(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "IM0.JPG")
    with pytest.raises(RecordError) as raised:
        found(folder, "D:\\set\\im0.jpg")
    assert all(word in str(raised.value) for word in ("set/im0.jpg", "here: ", "there is 'IM0.JPG'"))
    for name in ("", "..", "\ud800.jpg", "x" * 5000):
        with pytest.raises(RecordError) as raised:
            found(folder, name)
        str(raised.value).encode()


def test_plain_paths() -> None:
    assert str(plain_path("a/./b/../c//im.jpg")) == "a/c/im.jpg"
    assert str(plain_path("C:im.jpg")) == "C:im.jpg"
