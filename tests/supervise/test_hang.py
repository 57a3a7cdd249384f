"""Which rank of a run hangs or died, as the doctor tells it from the folders of runs."""

import json
import os
import signal
import socket
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from commands import command, wait_until
from tiny_run import TRAIN, start, wait, write_config

from mres.supervise import hang
from mres.supervise.finding import Finding, has_problem
from mres.supervise.heartbeat import ENDED, FAILED, LOST, PHASES, Beat, file_name, read_beats


def beat(
    rank: int, step: int, phase: str, *, silent: float = 0, since: float = 0, active: float | None = None,
    behind: float = 0, **values: object,
) -> Beat:  # fmt: skip
    """Of a run of one micro-batch a step on another machine, whose clock is `behind`; started an hour ago."""
    now = time.time()
    moves = 8 * step + PHASES.index(phase) if phase in PHASES else 0
    times = {
        "started": now - 3600 - behind, "since": now - since - behind, "time": now - silent - behind,
        "active": now - (since if active is None else active) - behind, "written": now - silent,
    }  # fmt: skip
    base = Beat(rank, 3, "elsewhere", 7, 0, step, phase, 0, moves, 0, 0, 0)
    return Beat(**{**asdict(base), **times, **values})  # type: ignore[arg-type]


def diagnosed(run_dir: Path, *beats: Beat) -> list[Finding]:
    (run_dir / "heartbeat").mkdir(parents=True, exist_ok=True)
    for b in beats:
        path = run_dir / "heartbeat" / file_name(b.rank)
        path.write_text(json.dumps(b.to_json()))
        os.utime(path, (b.written, b.written))
    return hang.diagnose(run_dir)


@pytest.mark.parametrize(
    ("beats", "level", "what", "words"),
    [
        ([(0, 9, "backward"), (1, 9, "data"), (2, 9, "backward")], "ok", "run", "3 rank(s) run"),
        ([(0, 9, ENDED), (1, 9, ENDED), (2, 9, ENDED)], "ok", "run", "all 3 rank(s) ended in order"),
        (
            [(0, 9, "backward", 0, 90), (1, 9, "data", 0, 95), (2, 9, "backward", 0, 90)],
            "problem", "rank 1", "the others wait for it: step 9, data, for 95 s",
        ),
        (
            [(0, 9, "backward", 0, 90), (1, 8, "checkpoint", 0, 200), (2, 9, "collective", 0, 90)],
            "problem", "rank 1", "the others wait for it: step 8, checkpoint, for 200 s",
        ),
        (
            [(0, 9, "backward", 0, 90), (1, 9, "backward", 50, 90), (2, 9, "backward", 0, 90)],
            "problem", "rank 1", "is silent in step 9, backward (elsewhere, pid 7), for 50 s",
        ),
        ([(0, 9, "backward", 0, 90), (2, 9, "backward", 0, 90)], "problem", "rank 1", "never came to this start of 3"),
        (
            [(0, 9, "collective", 0, 90), (1, 9, "collective", 0, 91), (2, 9, "collective", 0, 92)],
            "problem", "run", "all 3 rank(s) are in step 9, collective, for 90 s",
        ),
        (
            [(0, 8, "checkpoint", 0, 90), (1, 8, "checkpoint", 0, 91), (2, 8, "checkpoint", 0, 92)],
            "warning", "run", "all 3 rank(s) are in step 8, checkpoint, for 90 s",
        ),
        (  # it compiles
            [(0, 1, "forward", 0, 90), (1, 1, "forward", 0, 91), (2, 1, "forward", 0, 92)],
            "warning", "run", "all 3 rank(s) are in step 1, forward, for 90 s",
        ),
    ],
)  # fmt: skip
def test_who_is_waited_for(tmp_path: Path, beats: list[tuple], level: str, what: str, words: str) -> None:
    found = diagnosed(
        tmp_path,
        *(beat(r, step, phase, silent=s[0] if s else 0, since=s[1] if s else 0) for r, step, phase, *s in beats),
    )
    assert [(f.level, f.what) for f in found] == [(level, what)]
    assert words in found[0].found


def collectives_of(phase: str, *begun: int, active: float = 90) -> list[Beat]:
    return [beat(r, 9, phase, since=95, active=active, collectives=n) for r, n in enumerate(begun)]


@pytest.mark.parametrize(
    ("begun", "words"), [((26, 25, 26), "25 collectives, the others 26"), ((27, 25, 26), "25 collectives, the others 26 to 27")]
)  # fmt: skip
def test_in_one_phase_the_collectives_tell_who_is_waited_for(
    tmp_path: Path, begun: tuple[int, ...], words: str
) -> None:
    [found] = diagnosed(tmp_path, *collectives_of("forward", *begun))
    assert (found.level, found.what) == ("problem", "rank 1")
    assert found.found.startswith("the others wait for it: step 9, forward, for 95 s")
    assert words in found.found


def test_a_rank_alone_with_long_work_is_named_and_is_no_problem(tmp_path: Path) -> None:
    """One writes the index of a checkpoint, or computes the evaluation's metrics; the others wait for it."""
    [found] = diagnosed(tmp_path, *collectives_of("evaluate", 25, 26, 26))
    assert (found.level, found.what) == ("warning", "rank 0")


def test_a_phase_in_which_collectives_go_on_may_take_as_long_as_it_takes(tmp_path: Path) -> None:
    assert [f.level for f in diagnosed(tmp_path, *collectives_of("forward", 26, 25, 26, active=2))] == ["ok"]


def test_a_machine_whose_clock_differs_is_no_problem(tmp_path: Path) -> None:
    for behind in (15.0, -15.0, 3600.0):
        beats = [beat(0, 9, "forward"), beat(1, 9, "forward", behind=behind), beat(2, 9, "forward")]
        assert [f.level for f in diagnosed(tmp_path, *beats)] == ["ok"], behind


def test_dumps_are_named_where_there_are_some(tmp_path: Path) -> None:
    beats = [beat(rank, 9, "collective", since=90) for rank in range(3)]
    flight = tmp_path / "flight"
    assert str(flight) not in diagnosed(tmp_path, *beats)[0].remedy
    flight.mkdir()
    (flight / "rank_0").touch()
    assert str(flight) in diagnosed(tmp_path, *beats)[0].remedy


def test_slow_steps_are_given_their_time(tmp_path: Path) -> None:
    beats = [beat(0, 9, "backward", since=90), beat(1, 9, "forward", since=90), beat(2, 9, "backward", since=90)]
    assert has_problem(diagnosed(tmp_path, *beats))
    (tmp_path / "metrics.jsonl").write_text('{"step": 8, "step_s": 20.0}\n')
    assert not has_problem(diagnosed(tmp_path, *beats))


def test_a_rank_of_an_earlier_start_is_one_that_did_not_come(tmp_path: Path) -> None:
    early = beat(1, 500, "backward", silent=7200, since=7200)
    found = diagnosed(tmp_path, beat(0, 0, "start", since=40), early, beat(2, 0, "start", since=40))
    assert (found[0].what, "never came" in found[0].found) == ("rank 1", True)


def test_whose_fault_it_was_comes_before_those_that_ended_with_it(tmp_path: Path) -> None:
    found = diagnosed(
        tmp_path,
        beat(0, 9, LOST, note="rank 1 failed: x"),
        beat(1, 9, FAILED, note="no memory"),
        beat(2, 9, LOST, note="x"),
    )
    assert [(f.what, f.level) for f in found] == [("rank 1", "problem"), ("rank 0", "warning"), ("rank 2", "warning")]
    assert "no memory" in found[0].found


def test_a_process_id_that_another_process_has_now(tmp_path: Path) -> None:
    own = {"host": socket.gethostname(), "pid": os.getpid(), "world_size": 1}
    assert "died in step 9" in diagnosed(tmp_path, beat(0, 9, "backward", **own))[0].found
    own["started"] = time.time()
    assert diagnosed(tmp_path, beat(0, 9, "backward", **own))[0].level == "ok"


@pytest.mark.slow
def test_a_stopped_rank_of_a_real_run_is_named_and_the_run_goes_on_after_it(tmp_path: Path, tiny_shards: Path) -> None:
    config = write_config(tmp_path, tiny_shards)
    arguments = ["--config", str(config), "parallel.strategy=ddp", "train.steps=1000000", "train.trace_batches=false"]
    processes = start(TRAIN, arguments, tmp_path, world_size=2)
    run_dir = tmp_path / "runs" / "run"

    def until(condition) -> list[Finding]:
        def findings() -> tuple[list[Finding], ...]:
            found = hang.diagnose(run_dir) if len(read_beats(run_dir)) == 2 else []
            return (found,) if condition(found) else ()

        return wait_until(findings, "the doctor's finding")[0]

    try:
        until(lambda findings: findings and min(b.step for b in read_beats(run_dir).values()) > 2)
        os.kill(processes[1].pid, signal.SIGSTOP)
        found = until(has_problem)
        done = command("tools/doctor.py", run_dir)
        assert done.returncode == 1, done.stdout
        assert "problem  rank 1: is stopped in step " in done.stdout
        assert f"`kill -CONT {processes[1].pid}`" in done.stdout
        assert [f.what for f in found] == ["rank 1"]
        os.kill(processes[1].pid, signal.SIGCONT)
        before = min(b.step for b in read_beats(run_dir).values())
        until(
            lambda findings: (
                not has_problem(findings) and min(b.step for b in read_beats(run_dir).values()) > before + 1
            )
        )
        os.kill(processes[0].pid, signal.SIGTERM)
        assert wait(processes, tmp_path).codes == [75, 75]
        assert "ended in order" in hang.diagnose(run_dir)[0].found
    finally:
        for process in processes:
            process.kill()
