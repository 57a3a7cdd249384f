"""What status, logs and cancel tell of runs on a machine without SLURM, from the files of their folders."""

import json
import time
from pathlib import Path

import pytest
from commands import PATIENCE_S, light_commands

from mres.cluster import jobs, status
from mres.cluster.commands import is_command, main
from mres.cluster.slurm import Queued
from mres.errors import UserError
from mres.supervise.heartbeat import Heartbeat, read_beats

MEMBERS = ("lr-1", "lr-2", "lr-3")


@pytest.fixture(autouse=True)
def without_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)


def noted(run_dir: Path, *events: jobs.Event) -> Path:
    (run_dir / jobs.LOGS).mkdir(parents=True, exist_ok=True)
    for event in events:
        jobs.note(run_dir, event)
    return run_dir


@pytest.fixture
def run_dir() -> Path:
    """A run that was requeued once and is done."""
    folder = noted(
        Path("runs/demo"),
        jobs.Event("7", "submitted"),
        jobs.Event("7", "started", nodes="n[1-2]"),
        jobs.Event("7", "requeued", step=10, reason="preempted", excluded=("n2",)),
        jobs.Event("7", "started", restart=1, nodes="n[3-4]", step=10),
        jobs.Event("7", "ended", restart=1, step=20, exit_code=0, reason="training is done"),
    )
    lines = [{"step": step, "loss": 1 / step, "step_s": 2.0} for step in range(1, 21)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tables = [{"step": s, "object": {"num": 3, "mIoU": v}, "part": {"num": 0}} for s, v in ((10, 0.5), (20, 0.25))]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(table) + "\n" for table in tables))
    (folder / "environment.json").write_text('{"last_step": 20}')
    for rank in (0, 1):
        (folder / "slurm" / f"7_{rank}.log").write_text("".join(f"rank {rank} line {i}\n" for i in range(300)))
    return folder


@pytest.fixture
def sweep_dir() -> Path:
    """One member of it is done, one has failed, one was never submitted."""
    folder = Path("runs/rates")
    folder.mkdir(parents=True)
    rows = [{"name": name, "overrides": []} for name in MEMBERS]
    (folder / "sweep.json").write_text(json.dumps(rows))
    noted(folder / "lr-1", jobs.Event("8_0", "submitted"), jobs.Event("8_0", "ended", exit_code=0))
    noted(folder / "lr-2", jobs.Event("8_1", "submitted"), jobs.Event("8_1", "failed", exit_code=1, reason="it broke"))
    return folder


def test_a_run_is_told_whole(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(run_dir)]) == 0
    told = capsys.readouterr().out
    for words in ("done", "job 7", "20/20", "restarts: 1", "object.mIoU 0.5000 at 10", "without n2", "preempted"):
        assert words in told


def test_a_sweep_is_a_table(sweep_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(sweep_dir)]) == 0
    _, *rows, last = capsys.readouterr().out.splitlines()
    assert [row.split()[:2] for row in rows] == [["lr-1", "done"], ["lr-2", "failed"], ["lr-3", "not"]]
    assert "it broke" in rows[1]
    assert last == "3 members: 1 done, 1 failed, 1 not submitted"


def test_a_rank_s_log_is_shown_from_its_end(run_dir: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    main(["logs", "--rank", "1", "--lines", "2", str(run_dir)])
    assert capfdbinary.readouterr().out == b"rank 1 line 298\nrank 1 line 299\n"


def test_following_a_run_that_is_over_ends(run_dir: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    main(["logs", "-f", "--lines", "1", str(run_dir)])
    assert capfdbinary.readouterr().out == b"rank 0 line 299\n"


def test_heartbeats_tell_of_a_run_that_nobody_submitted() -> None:
    run_dir = Path("runs/here")
    beat = Heartbeat(run_dir, 0, 1)
    beat.start()
    beat.at("forward", 5)
    deadline = time.monotonic() + PATIENCE_S
    while getattr(read_beats(run_dir).get(0), "step", 0) < 5:  # it is written every second
        assert time.monotonic() < deadline
        time.sleep(0.1)
    found = status.look([run_dir])[0]
    assert (found.state, found.progress.step) == ("running", 4)
    beat.end("failed", "CUDA out of memory")
    found = status.look([run_dir])[0]
    assert (found.state, found.why) == ("failed", "rank 0: CUDA out of memory")


def state(*events: jobs.Event, queued: Queued | None = None, slurm_answers: bool = True) -> str:
    return status._state(events, queued, slurm_answers, Path("none"), {})[0]


SUBMITTED, STARTED = jobs.Event("7", "submitted"), jobs.Event("7", "started")


@pytest.mark.parametrize(
    ("events", "queued", "expected"),
    [
        ((SUBMITTED,), Queued("PENDING", "Resources"), "pending"),
        ((STARTED, SUBMITTED), Queued("RUNNING"), "running"),  # it has begun before its submission was noted
        ((SUBMITTED, STARTED, jobs.Event("7", "requeued")), Queued("COMPLETING"), "pending"),
        ((SUBMITTED, STARTED, jobs.Event("7", "cancelling")), Queued("RUNNING"), "cancelling"),
        ((SUBMITTED, STARTED, jobs.Event("7", "ended", exit_code=0)), Queued("COMPLETING"), "done"),
        ((SUBMITTED, STARTED, jobs.Event("7", "ended", exit_code=75)), Queued("COMPLETED"), "stopped"),
        ((SUBMITTED, STARTED, jobs.Event("7", "failed", exit_code=1)), Queued("PENDING"), "pending"),  # by hand
        ((SUBMITTED, STARTED), Queued("NODE_FAIL"), "node_fail"),
        ((SUBMITTED, STARTED), None, "gone"),
        ((), None, "not submitted"),
    ],
)
def test_states(events: tuple[jobs.Event, ...], queued: Queued | None, expected: str) -> None:
    assert state(*events, queued=queued) == expected


def test_without_slurm_the_last_event_is_what_is_known() -> None:
    assert state(SUBMITTED, STARTED, slurm_answers=False) == "started"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["status", "runs/dem"], "did you mean 'runs/demo'?"),
        (["status", "demo"], "did you mean 'runs/demo'?"),
        (["status", "."], "is not the folder of a run"),
        (["logs", "--rank", "2", "runs/demo"], "--rank 2: no log of that rank"),
        (["logs", "runs/rates"], "runs/rates/lr-1"),
        (["logs", "runs/rates/lr-2"], "has no logs of a job yet"),
        (["cancel", "runs/demo"], "no scancel on PATH"),
    ],
)
def test_mistakes_say_what_is_there(run_dir: Path, sweep_dir: Path, words: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        main(words)
    assert said in str(caught.value)


def test_what_is_a_command() -> None:
    assert is_command(["status", "runs/demo"])
    assert is_command(["statsu"])
    assert not is_command(["--config", "c.yaml"])
    assert not is_command(["optim.lr=1", "--config", "c.yaml"])
    assert not is_command([])


def test_commands_load_no_torch(run_dir: Path) -> None:
    commands = [["status", "--help"], ["status", run_dir], ["statsu", run_dir]]
    done = light_commands("launch/submit.py", commands, Path.cwd())
    assert [(code, "torch" in heavy) for code, _, heavy in done] == [(0, False), (0, False), (2, False)]


def test_time_left_is_that_of_the_last_steps(run_dir: Path) -> None:
    (run_dir / "environment.json").write_text('{"last_step": 50}')
    assert status.look([run_dir])[0].progress.left == "0:01:00"


def test_a_log_of_events_of_a_later_version_is_read(run_dir: Path) -> None:
    with (run_dir / jobs.JOBS).open("a") as file:
        file.write(json.dumps({"job": "9", "event": "started", "time": time.time(), "moon": 1}) + "\n")
    assert status.look([run_dir])[0].job == "9"


def test_there_is_nothing_to_cancel(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scancel").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="nothing to cancel: it is done"):
        main(["cancel", str(run_dir)])
    here = Path("runs/here")
    beat = Heartbeat(here, 0, 1)
    beat.start()
    while not read_beats(here):
        time.sleep(0.1)
    with pytest.raises(UserError, match=r"in no job of SLURM.*run\.lock"):
        main(["cancel", str(here)])
    assert not (here / jobs.JOBS).exists()
    beat.end()


def test_jobs_whose_scripts_were_submitted_by_hand_are_known_by_their_output(run_dir: Path, sweep_dir: Path) -> None:
    root = Path.cwd()
    outputs = {
        "7": "/elsewhere/noted",
        "20": f"{root}/runs/demo/slurm/%j_0.log",
        "21_1": f"{root}/runs/rates/slurm/%A_%a_0.log",
        "21_11": f"{root}/runs/rates/slurm/%A_%a_0.log",
        "22": "/elsewhere/else",
    }
    assert status.live_jobs(run_dir, ["7"], outputs) == ["7", "20"]
    assert status.live_jobs(sweep_dir / "lr-2", [], outputs) == ["21_1"]
    assert status.live_jobs(sweep_dir / "lr-1", [], outputs) == []
