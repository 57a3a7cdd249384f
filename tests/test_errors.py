"""How commands end: one line and exit code 2 for bad input, 130 for Ctrl-C, and one rank speaks for a machine."""

import pytest

from mres.errors import UserError, exit_on_user_error


@exit_on_user_error
def bad_input() -> int:
    raise UserError("'x' is wrong; use 'y'")


@exit_on_user_error
def interrupted() -> int:
    raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert bad_input() == 2
    assert capsys.readouterr().err == "error: 'x' is wrong; use 'y'\n"


def test_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    assert interrupted() == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_what_main_returns_is_the_exit_code() -> None:
    assert exit_on_user_error(lambda: None)() == 0
    assert exit_on_user_error(lambda: 75)() == 75


@pytest.mark.parametrize(
    ("rank", "local_rank", "world_size", "speaks"),
    [
        ("0", "0", "8", True),
        ("1", "1", "8", False),
        ("4", "0", "8", True),  # the first of the second machine: what is wrong may be wrong there alone
        ("5", "1", "8", False),
        ("first", "0", "8", True),  # variables that make no sense silence nobody
        ("3", "3", "2", True),
    ],
)
def test_one_rank_a_machine_speaks(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rank: str,
    local_rank: str,
    world_size: str,
    speaks: bool,
) -> None:
    for name, value in (("RANK", rank), ("LOCAL_RANK", local_rank), ("WORLD_SIZE", world_size)):
        monkeypatch.setenv(name, value)
    assert bad_input() == 2
    assert bool(capsys.readouterr().err) == speaks


@pytest.mark.parametrize(("rank", "is_known", "shown"), [("0", True, True), ("1", True, False), ("1", False, True)])
def test_the_others_are_told_and_who_is_silent_speaks_where_nobody_heard_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str, is_known: bool, shown: bool
) -> None:
    for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    told = []

    def tell(message: str) -> bool:
        told.append((message, capsys.readouterr().err))
        return is_known

    def wrong() -> int:
        raise UserError("x")

    assert exit_on_user_error(wrong, tell)() == 2
    assert [message for message, _ in told] == ["x"]
    assert (told[0][1] + capsys.readouterr().err == "error: x\n") == shown
    assert bool(told[0][1]) == (rank == "0"), "who speaks anyway does so before"
