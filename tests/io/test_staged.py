"""Folders in the making: taken up for the same purpose, held by one, and never in the way of what others have there."""

from pathlib import Path

import pytest

from mres.errors import UserError
from mres.io.staged import staged


def _interrupted(out: Path, purpose: str, *, keep: bool = True) -> None:
    with pytest.raises(KeyboardInterrupt), staged(out, purpose, keep=lambda *_: keep) as stage:  # noqa: PT012
        (stage.result / "half").write_text(purpose)
        raise KeyboardInterrupt


def test_what_is_committed_replaces_what_was_there_and_leaves_nothing_else(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with staged(tmp_path / "out") as stage:
            (stage.result / "file").write_text(text)
            stage.commit()
    assert (tmp_path / "out" / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_only_the_same_purpose_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _interrupted(tmp_path / "out", "one")
    assert f"kept in '{tmp_path}/out.incomplete'" in capsys.readouterr().err
    with staged(tmp_path / "out", "one", keep=lambda *_: True) as stage:
        assert (stage.result / "half").read_text() == "one"
    assert not list(tmp_path.iterdir())  # nobody committed it
    _interrupted(tmp_path / "out", "one")
    with staged(tmp_path / "out", "another") as stage:
        assert not list(stage.result.iterdir())


def test_what_is_nothing_to_go_on_from_goes(tmp_path: Path) -> None:
    _interrupted(tmp_path / "out", "one", keep=False)
    assert not list(tmp_path.iterdir())


def test_one_at_a_time(tmp_path: Path) -> None:
    with staged(tmp_path / "out", "one") as stage:
        with (
            pytest.raises(UserError, match=f"another process is making '{tmp_path}/out'"),
            staged(tmp_path / "out", "one"),
        ):
            pass
        assert stage.result.is_dir()


@pytest.mark.parametrize("what", ["file", "folder", "link", "diary"])
def test_what_is_of_others_stays_and_is_named(tmp_path: Path, what: str) -> None:
    place = tmp_path / "out.incomplete"
    if what == "file":
        place.write_text("mine")
    elif what == "link":
        (tmp_path / "elsewhere").mkdir()
        place.symlink_to(tmp_path / "elsewhere")
    else:
        place.mkdir()
        (place / ("notes" if what == "folder" else "journal.jsonl")).write_text("my diary\n")
    before = sorted(tmp_path.rglob("*"))
    with (
        pytest.raises(UserError, match=f"'{place}' is not what an interrupted command has left"),
        staged(place.with_suffix("")),
    ):
        pass
    assert sorted(tmp_path.rglob("*")) == before
