"""What a run keeps: JSON that anybody can read, taken back to the step that a run goes on at."""

import json
import math
import os
import select
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import lines

from mres.run_folder import RunLog, rewind
from mres.train.callback import Callbacks
from mres.train.callbacks.console import Console
from mres.train.callbacks.jsonl import Jsonl
from mres.train.callbacks.tensorboard import TensorBoard

VALUES = {
    "step": 3, "loss": 0.1 + 0.2, "lr": 1e-5, "grad_norm": 1.0, "step_s": 0.5, "data_wait_s": 0.1,
    "images_per_s": 8.0, "expressions_per_s": 24.0,
}  # fmt: skip


def test_a_pipe_in_the_place_of_a_log_is_refused_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")
    log = RunLog(tmp_path, enabled=True)
    for use in (
        lambda: log.rewind(3),
        lambda: log.has("metrics.jsonl", 3),
        lambda: log.append("metrics.jsonl", VALUES),
        lambda: log.lines("metrics.jsonl"),
    ):
        with pytest.raises(OSError, match="a pipe"):
            use()


def test_rewind_drops_later_steps_and_a_cut_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = [json.dumps({"step": step}) for step in range(1, 8)]
    path.write_text("\n".join(whole) + '\n{"step": 8, "lo')
    said: list[str] = []
    rewind(path, 5, said.append)
    assert len(said) == 1
    assert "1 line(s) that were cut off" in said[0]
    assert [line["step"] for line in lines(path)] == [1, 2, 3, 4, 5]
    assert path.read_text().endswith("\n")
    rewind(path, 0, said.append)
    assert path.read_text() == ""
    rewind(tmp_path / "none.jsonl", 3, said.append)
    assert len(said) == 1
    assert not (tmp_path / "none.jsonl").exists()


def test_numbers_keep_their_precision_and_nan_becomes_null(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path, enabled=True)
    callbacks = Callbacks([Jsonl(log), TensorBoard(log), Console(10)])
    callbacks.run_start(0)
    callbacks.on_log(dict(VALUES))
    callbacks.on_log({**VALUES, "step": 4, "loss": math.nan, "grad_norm": math.inf})
    callbacks.evaluated(4, {"part": {"mIoU": math.nan, "num": 0}})
    callbacks.close()
    assert lines(tmp_path / "evaluations.jsonl") == [{"step": 4, "part": {"mIoU": None, "num": 0}}]
    first, second = lines(tmp_path / "metrics.jsonl")
    assert first == VALUES
    assert second == {**VALUES, "step": 4, "loss": None, "grad_norm": None}
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in shown.Scalars("lr")] == [(n, pytest.approx(1e-5)) for n in (3, 4)]
    assert sorted(shown.Tags()["scalars"]) == sorted(VALUES.keys() - {"step"})
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("step 3/10  loss 0.3000  lr 1.00e-05  norm 1.00  8.0 images/s  24 expressions/s")
    assert shown[0].endswith("data wait 20 %")


def test_tensorboard_does_not_show_what_is_taken_back(tmp_path: Path) -> None:
    log = RunLog(tmp_path, enabled=True)
    board = TensorBoard(log)
    for first, loss in ((0, 1.0), (2, 2.0)):
        board.run_start(first)
        for step in range(first + 1, 5):
            board.on_log({"step": step, "loss": loss})
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in shown] == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]


def test_only_rank_0_writes_and_speaks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path, enabled=False)
    log.rewind(0)
    log.say("hello")
    log.append("bad_steps.jsonl", {"step": 1})
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_a_run_that_goes_on_takes_back_what_it_will_do_again(tmp_path: Path) -> None:
    names = ("metrics.jsonl", "batches.jsonl", "evaluations.jsonl", "bad_steps.jsonl", "quarantine.jsonl")
    for name in names:
        (tmp_path / name).write_text("".join(json.dumps({"step": step}) + "\n" for step in (2, 4, 6)))
    RunLog(tmp_path, enabled=True).rewind(4)
    for name in names:
        assert [line["step"] for line in lines(tmp_path / name)] == [2, 4]


def test_a_terminal_gets_a_bar_and_messages_above_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main_end, terminal_end = os.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with os.fdopen(terminal_end, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        log, console = RunLog(tmp_path, enabled=True), Console(10)
        console.run_start(2)
        log.say("warning: [brackets] stay")
        console.on_log(dict(VALUES))
        console.close()
        terminal.flush()
        shown = ""
        while select.select([main_end], [], [], 2.0)[0]:  # it comes in pieces, as the terminal gets to it
            shown += os.read(main_end, 100_000).decode()
    os.close(main_end)
    assert "warning: [brackets] stay" in shown
    assert "3/10" in shown
    assert "loss 0.3000" in shown
