"""Where a conversion writes: alone, over nothing of others, to go on after an interruption; what cannot be read is said."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import PATIENCE_S
from safetensors.torch import load_file, save_file
from saving import CONTEXT, in_process, killed_at
from tensors import workspace

from mres.checkpoint.opening import open_checkpoint
from mres.convert.convert import convert
from mres.errors import UserError
from mres.formats.deepspeed_files import tag_folder
from mres.io import staged

TOOL = Path(__file__).parents[2] / "tools" / "convert.py"
LONG = "x" * 300


def weights(path: Path, *, value: float = 1.0) -> Path:
    save_file({f"w{number}": torch.full((50, 40), value) for number in range(3)}, path)
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return weights(tmp_path / "source.safetensors")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refused(match: str, source: Path, out: Path, *, overwrite: bool = False) -> None:
    with pytest.raises(UserError, match=match) as raised:
        convert(source, out, "safetensors", overwrite=overwrite)
    assert len(str(raised.value).splitlines()) == 1


class Halted:
    """The command in a process that stays where a tensor is read for the second time, when all are compared."""

    def __init__(self, source: Path, out: Path, *options: str) -> None:
        halt = (
            "import pathlib, runpy, sys, threading, time\n"
            "from mres.formats.memory import Reader\n"
            "read, reads = Reader.read, []\n"
            "def halting(self, name):\n"
            "    reads.append(name)\n"
            "    mine = threading.current_thread() is threading.main_thread()  # that of the others would be waited for\n"
            f"    while mine and len(reads) > 3 and not pathlib.Path({str(out)!r} + '.go').exists():\n"
            "        print('halted', flush=True)\n"
            "        time.sleep(0.05)\n"
            "    return read(self, name)\n"
            "Reader.read = halting\n"
            f"sys.argv = {['convert.py', str(source), str(out), '--to', 'safetensors', *options]!r}\n"
            f"runpy.run_path({str(TOOL)!r}, run_name='__main__')\n"
        )
        self._go = Path(f"{out}.go")
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, "-c", halt], stdout=pipe, stderr=pipe, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "halted\n", self.process.communicate()[1]

    def end(self, sent: signal.Signals | None = None) -> tuple[int, str]:
        """Exit code and stderr: after a signal, or of the whole conversion."""
        if sent is None:
            self._go.touch()
        else:
            self.process.send_signal(sent)
        try:
            _, errors = self.process.communicate(timeout=PATIENCE_S)
        finally:
            self.process.kill()
        self._go.unlink(missing_ok=True)
        return self.process.returncode, errors


@pytest.mark.slow
def test_two_conversions_into_one_folder_do_not_meet(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = Halted(source, out)
    try:
        for overwrite in (False, True):
            refused(rf"another process is making '{out}' \(in '{out}.incomplete'\)", source, out, overwrite=overwrite)
    finally:
        code, errors = first.end()
    assert code == 0, errors
    assert names(tmp_path) == ["out", "source.safetensors"]
    assert set(load_file(out / "model.safetensors")) == {"w0", "w1", "w2"}


@pytest.mark.slow
def test_a_killed_conversion_holds_nothing(source: Path, tmp_path: Path) -> None:
    assert Halted(source, tmp_path / "out").end(signal.SIGKILL)[0] == -signal.SIGKILL
    assert names(tmp_path / "out.incomplete") == ["journal.jsonl", "result"]
    convert(source, tmp_path / "out", "safetensors")
    assert names(tmp_path) == ["out", "source.safetensors"]


def test_what_another_conversion_made_meanwhile_is_not_replaced(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def late(path: Path) -> object:
        monkeypatch.undo()
        convert(weights(tmp_path / "other.safetensors", value=2.0), out, "safetensors")
        return open_checkpoint(path)

    monkeypatch.setattr("mres.convert.convert.open_checkpoint", late)
    refused("exists and is not empty", source, out)
    assert load_file(out / "model.safetensors")["w0"][0, 0] == 2.0
    assert names(tmp_path) == ["other.safetensors", "out", "source.safetensors"]


def test_a_lock_on_a_workspace_that_went_counts_for_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = staged.locked

    def late(path: Path, *, wait: bool) -> object:
        held = locked(path, wait=wait)

        class Late:
            def __enter__(self) -> int:
                descriptor = held.__enter__()
                path.unlink()  # as another one does, just before this one has the lock
                path.touch()
                return descriptor

            def __exit__(self, *error: object) -> None:
                held.__exit__(None, None, None)

        return Late()

    monkeypatch.setattr(staged, "locked", late)
    refused("another process is making", source, tmp_path / "out")


@pytest.mark.slow
def test_an_interrupted_conversion_says_that_it_goes_on(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, errors = Halted(source, tmp_path / "out").end(signal.SIGINT)
    assert code == 130
    kept = f"note: what was finished is kept in '{tmp_path}/out.incomplete'; the same command goes on from it"
    assert errors.splitlines()[-2:] == [kept, "interrupted"]
    assert "Traceback" not in errors
    convert(source, tmp_path / "out", "safetensors")
    assert "are there already" in capsys.readouterr().err
    assert names(tmp_path) == ["out", "source.safetensors"]


def test_any_other_failure_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("mres.convert.convert.check_same", broken)
    with pytest.raises(ZeroDivisionError):
        convert(source, tmp_path / "out", "safetensors")
    assert names(tmp_path) == ["source.safetensors"]


@pytest.mark.parametrize("journal", [None, "my diary\n"])
def test_a_workspace_of_others_is_left_alone(source: Path, tmp_path: Path, journal: str | None) -> None:
    notes = tmp_path / "out.incomplete" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    if journal is not None:
        (notes.parent / "journal.jsonl").write_text(journal)
    before = names(notes.parent)
    refused(
        r"out.incomplete' is not what an interrupted command has left; remove or rename it", source, tmp_path / "out"
    )
    assert notes.read_text() == "mine"
    assert names(notes.parent) == before


def test_a_file_or_a_link_in_the_workspaces_place_is_left_alone(source: Path, tmp_path: Path) -> None:
    place = tmp_path / "out.incomplete"
    place.write_text("mine")
    refused("is not what an interrupted command has left", source, tmp_path / "out")
    assert place.read_text() == "mine"
    place.unlink()
    (tmp_path / "elsewhere").mkdir()
    place.symlink_to(tmp_path / "elsewhere")
    refused("is not what an interrupted command has left", source, tmp_path / "out")
    assert not names(tmp_path / "elsewhere")


@pytest.mark.parametrize("journal", [None, "", '{"purp'])
def test_an_empty_or_just_begun_workspace_is_no_obstacle(source: Path, tmp_path: Path, journal: str | None) -> None:
    (tmp_path / "out.incomplete").mkdir()
    if journal is not None:
        (tmp_path / "out.incomplete" / "journal.jsonl").write_text(journal)
    convert(source, tmp_path / "out", "safetensors")
    assert names(tmp_path) == ["out", "source.safetensors"]


@pytest.mark.exhaustive
@pytest.mark.slow
def test_whenever_a_conversion_is_killed_the_same_call_goes_on(source: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "out", weights(tmp_path / "other.safetensors", value=2.0)
    convert(other, out, "safetensors")
    killed = 0
    for kill_at in range(1, 200):
        process = CONTEXT.Process(target=killed_at, args=(kill_at, overwritten, source, out))
        process.start()
        process.join(PATIENCE_S)
        killed += process.exitcode != 0
        if process.exitcode and kill_at % 3 == 0:  # else the next one meets what was left
            overwritten(source, out)
            assert load_file(out / "model.safetensors")["w0"][0, 0] == 1.0
            overwritten(other, out)
        if process.exitcode == 0:
            break
    assert killed > 10
    assert names(tmp_path) == ["other.safetensors", "out", "source.safetensors"]


def overwritten(source: Path, out: Path) -> None:
    convert(source, out, "safetensors", overwrite=True)


def test_files_of_a_workspace_that_does_not_fit_are_written_anew(tmp_path: Path) -> None:
    root = tmp_path / "work"
    first = workspace(root)
    first.write_file("a", iter([("x", lambda file: void(file.write(b"12345")))]))
    os.truncate(root / "result" / "a", 2)
    again = workspace(root)
    assert (again.facts, again.taken_up) == ({}, 0)
    again.write_file("a", iter([("x", lambda file: void(file.write(b"12345")))]))
    assert (root / "result" / "a").read_bytes() == b"12345"


def void(_: object) -> None:
    pass


def loop(path: Path) -> Path:
    path.symlink_to(path.name)
    return path


def test_a_source_that_cannot_be_read_is_one_message_with_the_reason(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused("'.*/loop' cannot be read: Too many levels of symbolic links", loop(tmp_path / "loop"), out)
    refused("cannot be read: Too many levels of symbolic links", tmp_path / "loop" / "run", out)
    refused("cannot be read: File name too long", tmp_path / LONG, out)
    (tmp_path / "broken").symlink_to("gone")
    refused("no such checkpoint or run: '.*/broken': a link to 'gone', which is not there", tmp_path / "broken", out)
    index = tmp_path / "model.safetensors.index.json"
    for name, reason in (
        (f"{LONG}.safetensors", "File name too long"),
        ("loop.safetensors", "Too many levels"),
        ("folder.safetensors", "it is a folder"),
    ):
        index.write_text(json.dumps({"weight_map": {"w": name}}))
        refused(f"'.*{name}' cannot be read: {reason}", index, out)
        if name.startswith("folder"):
            continue
        if name.startswith(LONG):
            loop(tmp_path / "loop.safetensors")
            (tmp_path / "folder.safetensors").mkdir()
    refused("cannot be written: File name too long; name another folder", source, tmp_path / LONG)
    refused("cannot be written: Too many levels", source, tmp_path / "loop")
    assert not list(tmp_path.glob("out*"))


def without_rights(call: Callable[[], object]) -> str:
    """What `call` says to a user who is not root."""
    os.setegid(65534)
    os.seteuid(65534)
    try:
        call()
    except UserError as error:
        return str(error)
    return "nothing"


def closed(source: Path, out: Path) -> str:
    return without_rights(lambda: convert(source, out, "safetensors"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_rights_that_are_lacking_are_named(source: Path, tmp_path: Path) -> None:
    for parent in [tmp_path, *tmp_path.parents[:3]]:
        if parent.stat().st_uid == os.geteuid() and parent != Path("/tmp"):
            parent.chmod(0o755)
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    tagged = tmp_path / "tagged"
    (tagged / "global_step1").mkdir(parents=True)
    (tagged / "latest").write_text("global_step1")
    for path, locked in (
        (source, source),
        (run, run),
        (run / "checkpoints", run),
        (run, run / "checkpoints"),
        (tagged, tagged / "latest"),
        (tagged, tagged / "global_step1"),
    ):
        mode = locked.stat().st_mode
        locked.chmod(0)
        said = in_process(closed, path, tmp_path / "out")
        locked.chmod(mode)
        assert "cannot be read: Permission denied" in said, (path, locked, said)
        assert len(said.splitlines()) == 1


def test_what_latest_names_and_itself_may_be_unreadable(tmp_path: Path) -> None:
    latest = tmp_path / "latest"
    for text, reason in (
        ("loop", "loop' cannot be read: Too many levels"),
        (LONG, "cannot be read: File name too long"),
        ("a\0b", "is no name of a folder"),
        ("file", "file is no folder"),
        ("gone", "gone is missing"),
    ):
        latest.write_text(text)
        if not (tmp_path / "loop").is_symlink():
            loop(tmp_path / "loop")
            (tmp_path / "file").touch()
        with pytest.raises(UserError, match=reason):
            tag_folder(tmp_path)
    latest.unlink()
    latest.symlink_to("gone")
    with pytest.raises(UserError, match="latest' cannot be read: No such file"):
        tag_folder(tmp_path)
    latest.unlink()
    latest.mkdir()
    assert tag_folder(tmp_path) is None


@pytest.mark.parametrize("name", ["weights.pt", "__0_0.distcp", ".metadata", "mp_rank_00_model_states.pt"])
def test_a_file_of_a_checkpoint_is_told_from_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    refused(
        r"is a file: of files, \*.safetensors and .* are read; of all else, name the folder",
        tmp_path / name,
        tmp_path / "o",
    )


@pytest.mark.slow
def test_shards_that_changed_since_a_kill_are_read_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard, index = weights(tmp_path / "some.safetensors"), tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {f"w{number}": shard.name for number in range(3)}}))
    assert Halted(index, tmp_path / "out").end(signal.SIGKILL)[0] == -signal.SIGKILL
    time.sleep(0.01)
    weights(shard, value=2.0)
    convert(index, tmp_path / "out", "safetensors")
    assert "are there already" not in capsys.readouterr().err
    assert load_file(tmp_path / "out" / "model.safetensors")["w2"][0, 0] == 2.0


def test_a_link_that_leads_nowhere_is_no_target(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    refused(r"out' is a link to '.*nowhere', which is not there", source, tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
