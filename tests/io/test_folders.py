"""A folder takes another's place whole, with and without a system that can exchange them; what kills leave is made up for."""

from pathlib import Path

import pytest

from mres.io import folders
from mres.io.folders import REPLACED_MARK, commit_folder, settle


@pytest.fixture(params=["exchange", "two renames"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "two renames":
        monkeypatch.setattr(folders, "_exchanged", lambda *_: False)


pytestmark = pytest.mark.usefixtures("_way")


def folder(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "file").write_text(text)
    return path


def tree(path: Path) -> dict[str, str]:
    return {str(file.relative_to(path)): file.read_text() for file in path.rglob("*") if file.is_file()}


def test_nothing_is_moved_away_for_what_is_not_there(tmp_path: Path) -> None:
    final = folder(tmp_path / "final", "old")
    with pytest.raises(FileNotFoundError, match="part"):
        commit_folder(tmp_path / "part", final)
    assert tree(tmp_path) == {"final/file": "old"}


def test_what_was_moved_away_comes_back_when_the_new_one_cannot_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final, part = folder(tmp_path / "final", "old"), folder(tmp_path / "part", "new")
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if target == final and path.name == "new":
            raise OSError("no")
        return rename(path, target)

    def unable(*_: object) -> bool:
        raise OSError("no")

    monkeypatch.setattr(Path, "rename", failing)
    if folders._exchanged.__name__ == "_exchanged":
        monkeypatch.setattr(folders, "_exchanged", unable)
    with pytest.raises(OSError, match="no"):
        commit_folder(part, final)
    assert tree(tmp_path) == {"final/file": "old", "part/file": "new"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["final", "part"]


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_of_others_beside_what_is_committed_stays(tmp_path: Path, *, there: bool) -> None:
    final, part = tmp_path / "final", folder(tmp_path / "part", "new")
    folder(tmp_path / "final.replaced", "mine")
    if there:
        folder(final, "old")
    commit_folder(part, final)
    assert tree(tmp_path) == {"final/file": "new", "final.replaced/file": "mine"}


def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    target = folder(tmp_path / "target", "mine")
    (tmp_path / "final").symlink_to(target)
    commit_folder(folder(tmp_path / "part", "new"), tmp_path / "final")
    assert tree(tmp_path) == {"final/file": "new", "target/file": "mine"}
    assert not (tmp_path / "final").is_symlink()


def left(tmp_path: Path, **inside: str) -> Path:
    beside = tmp_path / "final.replaced"
    beside.mkdir()
    (beside / REPLACED_MARK).touch()
    for name, text in inside.items():
        folder(beside / name, text)
    return tmp_path / "final"


def test_a_kill_between_two_renames_is_made_up_for(tmp_path: Path) -> None:
    final = left(tmp_path, new="new", old="old")
    settle(final)
    assert tree(tmp_path) == {"final/file": "new"}


def test_the_one_before_comes_back_where_the_new_one_is_gone(tmp_path: Path) -> None:
    settle(left(tmp_path, old="old"))
    assert tree(tmp_path) == {"final/file": "old"}


@pytest.mark.parametrize("inside", [{}, {"new": "old"}, {"new": "new", "old": "old"}])
def test_what_a_kill_left_goes_once_the_folder_is_there(tmp_path: Path, inside: dict[str, str]) -> None:
    folder(left(tmp_path, **inside), "there")
    settle(tmp_path / "final")
    assert tree(tmp_path) == {"final/file": "there"}
    commit_folder(folder(tmp_path / "part", "newer"), tmp_path / "final")
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert tree(tmp_path) == {"final/file": "newer"}


def test_what_was_never_replaced_is_not_made(tmp_path: Path) -> None:
    settle(left(tmp_path, new="new"))
    assert tree(tmp_path) == {}
