"""Folders in the making: taken up for the same purpose, held by one, and never in the way of what others have there."""

from pathlib import Path

import pytest

from mres.errors import UserError
from mres.io.folders import REPLACED_MARK
from mres.io.staged import JOURNAL, staged, sweep


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


def test_what_a_kill_leaves_beside_what_is_there_is_swept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in ("out", "out.incomplete", "out.replaced", "out.replaced-2"):
        (tmp_path / name).mkdir()
    (tmp_path / "out.incomplete" / JOURNAL).write_text('{"purpose": "one"}\n')
    (tmp_path / "out.replaced" / REPLACED_MARK).touch()
    (tmp_path / "out.replaced-2" / "of others").touch()
    sweep(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.replaced-2"]


def test_what_somebody_may_go_on_with_or_is_at_is_not_swept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with staged(tmp_path / "out", "one") as stage:
        stage.commit()
        sweep(tmp_path / "out")
        assert stage.root.is_dir(), "its process has not ended"
    _interrupted(tmp_path / "out", "one")
    sweep(tmp_path / "out")
    assert (tmp_path / "out.incomplete" / "result" / "half").is_file()
