"""How commands end: one line and exit code 2 for bad input, 130 for Ctrl-C, and one rank speaks for a machine."""

import shlex
from pathlib import Path

import pytest
from commands import ROOT, command

from mres.config import load_config
from mres.errors import UserError, exit_on_user_error, install, near_path
from mres.shards.reader import ShardSet


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


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("tools/shard.py build coco out --anotations x", ["--annotations", "unknown option '--anotations'"]),
        ("tools/shard.py build labelmee out", ["'labelmee'", "did you mean 'labelme'?"]),
        ("tools/shard.py verfy out", ["did you mean 'verify'?"]),
        ("tools/shard.py info out --jsn", ["'--jsn': did you mean '--json'?"]),
        ("tools/predict.py --checkpoint a --image b --txt c", ["'--txt': did you mean '--text'?"]),
        ("tools/convert.py a b --too dcp", ["'--too': did you mean '--to'?"]),
        ("tools/export.py a b --program onx", ["did you mean 'onnx'?"]),
        ("tools/report.py a --pictur=x.png --dta y", ["'--dta': did you mean '--data'?"]),
        ("tools/bench.py memry", ["did you mean 'memory'?"]),
        ("tools/doctor.py --confg c", ["did you mean '--config'?"]),
        ("launch/train.py --config configs/demo.yaml --dry-rnu", ["did you mean '--dry-run'?"]),
        ("launch/train.py --confg c", ["'--confg': did you mean '--config'?"]),
        ("launch/submit.py --config configs/demo.yaml --cluser local", ["'--cluser': did you mean '--cluster'?"]),
        ("tools/export.py a b s3://AKIA:hunter2@bucket/c", ["unrecognized arguments: s3://bucket/c"]),
    ],
)
def test_what_is_mistyped_is_named_with_what_was_meant(line: str, words: list[str]) -> None:
    done = command(*shlex.split(line), folder=ROOT)
    assert done.returncode == 2, done.stdout
    for word in words:
        assert word in done.stderr
    assert "hunter2" not in done.stderr


def test_of_paths_at_which_nothing_is_what_was_meant(tmp_path: Path) -> None:
    from mres.checkpoint.store import locate
    from mres.convert.convert import convert
    from mres.evaluate.segmenter import read_image

    for name in ("photo.jpg", "mine/config.yaml", "lmset/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    tried = [
        (lambda: load_config(Path("demo_pretran.yaml")), str(ROOT / "configs" / "demo_pretrain.yaml")),
        (lambda: load_config(tmp_path / "mine" / "confg.yaml"), "mine/config.yaml"),
        (lambda: locate(tmp_path / "mien"), "/mine"),
        (lambda: convert(tmp_path / "mien", tmp_path / "out", "dcp"), "/mine"),
        (lambda: read_image(tmp_path / "phto.jpg"), "/photo.jpg"),
        (lambda: ShardSet(tmp_path / "lmst"), "/lmset"),
    ]
    for attempt, meant in tried:
        with pytest.raises(UserError, match=rf"did you mean '[^']*{meant}'\?"):
            attempt()
    (tmp_path / "broken").symlink_to("nowhere")
    assert near_path(tmp_path / "broken") == near_path(tmp_path / "nofolder" / "x") == near_path(Path("/")) == ""


def test_extras_are_installed_from_the_folder_with_its_pins() -> None:
    """mres is on no index: no message may say `pip install mres[…]`."""
    assert install("heif") == '`pip install -c constraints.txt -e ".[heif]"` in mres\'s folder'
    texts = [
        path
        for folder in ("mres", "tools", "docs")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".md")
    ]
    assert [path for path in texts if "install mres[" in (text := path.read_text()) or "install 'mres[" in text] == []
