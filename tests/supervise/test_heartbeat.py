"""Where every rank says that it is, and who of them keeps the others waiting."""

import json
import os
import time
from pathlib import Path

import pytest
from commands import wait_until
from tiny_run import TRAIN, run, write_config

from mres.supervise.heartbeat import (
    ENDED,
    FAILED,
    PHASES,
    Beat,
    Heartbeat,
    file_name,
    file_system_time,
    is_silent,
    lagging,
    read_beats,
)


def beat(rank: int, phase: str, moves: int, collectives: int) -> Beat:
    return Beat(rank, 4, "a", 1, 0.0, 5, phase, 0.0, moves, collectives, 0.0, 0.0)


def test_the_file_follows_the_rank_and_says_how_it_ended(tmp_path: Path) -> None:
    heartbeat = Heartbeat(tmp_path, 3, 4)
    heartbeat.start()
    wait_until(lambda: 3 in read_beats(tmp_path), "the first beat comes at once")
    first = read_beats(tmp_path)[3]
    assert (first.phase, first.step, first.pid, first.world_size) == ("start", 0, os.getpid(), 4)
    heartbeat.at("backward", 17)
    wait_until(lambda: read_beats(tmp_path)[3].phase == "backward", "it is written without the training thread")
    stuck = read_beats(tmp_path)[3]
    wait_until(lambda: read_beats(tmp_path)[3].time > stuck.time, "the process lives")
    assert read_beats(tmp_path)[3].since == stuck.since, "and is still where it was"
    assert stuck.step == 17
    heartbeat.end(FAILED, "out of memory")
    last = read_beats(tmp_path)[3]
    assert (last.phase, last.note, last.step) == (FAILED, "out of memory", 17)
    assert [p.name for p in (tmp_path / "heartbeat").iterdir()] == ["rank-00003.json"], "nothing half written is left"


def test_files_of_ranks_that_an_earlier_start_had_are_removed(tmp_path: Path) -> None:
    for rank in range(3):
        old = Heartbeat(tmp_path, rank, 3)
        old.start()
        old.end()
    new = Heartbeat(tmp_path, 0, 2)
    new.start()
    new.end()
    assert sorted(read_beats(tmp_path)) == [0, 1]


def test_a_folder_that_takes_no_files_costs_no_run(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    heartbeat = Heartbeat(tmp_path / "run", 0, 1)
    heartbeat.start()
    heartbeat.at("data", 1)
    heartbeat.end()
    assert (tmp_path / "run").read_text() == "a file"


def test_none_is_written_where_none_was_started(tmp_path: Path) -> None:
    heartbeat = Heartbeat(tmp_path, 0, 1)
    heartbeat.at("data", 1)
    heartbeat.end()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"rank": 0}', '{"rank": 0, "extra": 1}'])
def test_what_is_no_heartbeat_is_left_out(tmp_path: Path, content: str) -> None:
    (tmp_path / "heartbeat").mkdir()
    (tmp_path / "heartbeat" / file_name(0)).write_text(content)
    assert read_beats(tmp_path) == {}


def test_collectives_are_activity_and_phases_are_counted(tmp_path: Path) -> None:
    begun = [3]
    heartbeat = Heartbeat(tmp_path, 0, 1, lambda: begun[0])
    heartbeat.start()
    heartbeat.at("forward", 1)
    wait_until(lambda: 0 in read_beats(tmp_path) and read_beats(tmp_path)[0].moves == 1, "the phase is counted")
    entered = read_beats(tmp_path)[0]
    assert entered.collectives == 3
    wait_until(lambda: read_beats(tmp_path)[0].time > entered.time, "the process lives")
    assert read_beats(tmp_path)[0].active == entered.active, "and nothing has happened"
    begun[0] = 4
    wait_until(lambda: read_beats(tmp_path)[0].collectives == 4, "collectives are counted")
    collective = read_beats(tmp_path)[0]
    heartbeat.end()
    assert collective.active > entered.active, "the rank does something"
    assert (collective.since, collective.moves) == (entered.since, 1), "in the phase where it was"


def test_durations_do_not_take_the_clock_of_the_rank_for_that_of_the_file_system(tmp_path: Path) -> None:
    """The rank's clock is years behind; it wrote 2 s ago that it was in its phase for 5 s, and idle for 3."""
    behind = Beat(0, 1, "a", 1, 100.0, 5, "data", 115.0, 1, 0, 117.0, 120.0, written=1_000_000.0)
    now = 1_000_002.0
    assert (behind.silent_s(now), behind.phase_s(now), behind.idle_s(now)) == (2.0, 7.0, 5.0)
    assert behind.came == 1_000_000.0 - 20.0
    (tmp_path / "heartbeat").mkdir()
    (tmp_path / "heartbeat" / file_name(0)).write_text(json.dumps(behind.to_json()))
    os.utime(tmp_path / "heartbeat" / file_name(0), (behind.written, behind.written))
    assert read_beats(tmp_path) == {0: behind}


def test_the_file_systems_time_leaves_nothing_behind(tmp_path: Path) -> None:
    assert abs(file_system_time(tmp_path) - time.time()) < 60, "where there is no folder"
    (tmp_path / "heartbeat").mkdir()
    new = tmp_path / "new"
    new.touch()
    assert abs(file_system_time(tmp_path) - new.stat().st_mtime) < 60
    assert list((tmp_path / "heartbeat").iterdir()) == []


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([("backward", 9, 30), ("backward", 9, 30)], []),
        ([("backward", 9, 30), ("forward", 8, 30), ("backward", 9, 31)], [1]),
        ([("data", 9, 30), ("evaluate", 8, 40), ("collective", 10, 30)], [1]),
        # Micro-batches: the same phases come again within a step.
        ([("forward", 8, 31), ("backward", 7, 30)], [1]),
        ([("collective", 9, 30), ("data", 8, 30), ("data", 8, 30), ("collective", 9, 30)], [1, 2]),
        ([("forward", 9, 31), ("forward", 9, 30), ("forward", 9, 31), ("forward", 9, 30)], [1, 3]),
        ([("backward", 9, 30), (ENDED, 2, 3), ("backward", 9, 30)], []),  # nobody waits for who has ended
        ([(FAILED, 3, 3)], []),
    ],
)
def test_who_has_come_least_far_is_the_one_that_is_waited_for(
    places: list[tuple[str, int, int]], expected: list[int]
) -> None:
    beats = {rank: beat(rank, *place) for rank, place in enumerate(places)}
    assert [b.rank for b in lagging(beats)] == expected


@pytest.mark.parametrize(
    ("world_size", "age", "phase", "expected"),
    [
        (4, 9, "data", False),
        (4, 11, "data", True),
        (4, 11, ENDED, False),
        (1024, 79, "data", False),
        (1024, 81, "data", True),
    ],
)
def test_who_does_not_write_any_more(world_size: int, age: float, phase: str, expected: bool) -> None:
    last = Beat(0, world_size, "a", 1, 0.0, 5, phase, 0.0, 1, 0, 0.0, 7.0, written=100.0)
    assert is_silent(last, 100.0 + age) is expected


def test_a_run_leaves_one_a_rank_and_the_phases_are_those_of_the_trainer(tmp_path: Path, tiny_shards: Path) -> None:
    config = write_config(tmp_path, tiny_shards)
    for name, expected in (("on", [file_name(0)]), ("off", None)):
        arguments = ["--config", str(config), f"run.name={name}", "train.steps=3", f"train.heartbeat={name}"]
        done = run(TRAIN, arguments, tmp_path)
        assert done.codes == [0], done.output
        folder = tmp_path / "runs" / name / "heartbeat"
        assert (sorted(p.name for p in folder.iterdir()) if folder.exists() else None) == expected
    last = json.loads((tmp_path / "runs" / "on" / "heartbeat" / file_name(0)).read_text())
    assert (last["phase"], last["step"]) == (ENDED, 3)
    trainer = (Path(__file__).parents[2] / "mres" / "train" / "trainer.py").read_text()
    assert all(f'phase("{phase}", ' in trainer for phase in PHASES[1:])
