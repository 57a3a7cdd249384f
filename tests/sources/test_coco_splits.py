"""Splits of a COCO file: held out by a hash, listed in a file, or the file as it stands."""

from pathlib import Path

import pytest
from made_coco import annotation, open_weights, rectangle, write_coco

from mres.errors import UserError
from mres.records import ImageRecord
from mres.sources.source import RecordSource

NAMES = tuple(f"set/{i:03}.jpg" for i in range(1, 13))


def data_set(folder: Path, names: tuple[str, ...] = NAMES) -> list[str]:
    items = [annotation(i, 1, [rectangle(2, 3, 10, 4)], image=i) for i in range(1, len(names) + 1)]
    return write_coco(folder, ["wheel"], items, names)


def ids(source: RecordSource) -> list[str]:
    found = [record.id for record in source if isinstance(record, ImageRecord)]
    assert len(found) == len(source)
    return found


def held_out(options: list[str], split: str, val: int, test: int) -> list[str]:
    numbers = ["--val-images", str(val), "--test-images", str(test)]
    return ids(open_weights("coco", *options, "--split", split, *numbers))


def test_val_and_test_are_held_out_beside_each_other(tmp_path: Path) -> None:
    options = data_set(tmp_path)
    train, val, test = (held_out(options, split, 3, 4) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (5, 3, 4)
    assert sorted(train + val + test) == [Path(name).name for name in NAMES]
    assert held_out(options, "val", 3, 0) == val  # a test split takes nothing of val
    with pytest.raises(UserError, match=r"cannot hold out 10 images \(--val-images\) and 3 \(--test-images\)"):
        held_out(options, "test", 10, 3)
    with pytest.raises(UserError, match=r"the test split of .* is empty: .*--all-images .*--split-file"):
        held_out(options, "test", 3, 0)


def listed(options: list[str], path: Path, content: str) -> RecordSource:
    path.write_text(content, encoding="utf-8")
    return open_weights("coco", *options, "--split", "test", "--split-file", str(path))


def test_a_split_file_names_its_images(tmp_path: Path) -> None:
    options = data_set(tmp_path)
    path = tmp_path / "test.txt"
    source = listed(
        options, path, "\ufeffset/001.jpg\n./images/set/002.jpg\nset\\003.jpg\r\n004\n\nD:\\x\\005.jpg\n12\n"
    )
    assert ids(source) == ["001.jpg", "002.jpg", "003.jpg", "004.jpg", "005.jpg", "012.jpg"]
    assert source.description["split_file"] == "test.txt"
    assert "val_images" not in source.description
    source = listed(options, path, "001\n999.jpg\n")
    assert ids(source) == ["001.jpg"]
    assert source.notes["lines of the split file that name no image of the annotations"] == 1
    with pytest.raises(
        UserError, match=r"2 errors:\n.*'set/01.jpg' names no image; did you mean 'set/.*'\?\n.*'x.png'"
    ):
        listed(options, path, "set/01.jpg\nx.png\n")
    with pytest.raises(UserError, match=r"test.txt' \(--split-file\).*it names no image"):
        listed(options, path, "\n")


def test_names_that_repeat_in_folders(tmp_path: Path) -> None:
    options = data_set(tmp_path, ("a/1.jpg", "b/1.jpg", "b/2.jpg"))
    assert held_out(options, "train", 0, 0) == ["a/1.jpg", "b/1.jpg", "b/2.jpg"]
    assert ids(listed(options, tmp_path / "test.txt", "b/1.jpg\n2.jpg\n")) == ["b/1.jpg", "b/2.jpg"]
    with pytest.raises(UserError, match=r"'1.jpg' may be 'a/1.jpg' or 'b/1.jpg'"):
        listed(options, tmp_path / "test.txt", "1.jpg\n")
