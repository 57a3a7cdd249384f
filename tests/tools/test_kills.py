"""A cut of the kill test (`python tools/bench.py kills`); what its answers mean is held by examples."""

from pathlib import Path

import pytest
from benchmarks.killing import Command, kill_after, kill_at, preload, run
from benchmarks.kills import KillTest, is_whole, left_over

WRITES = """
import sys, time
for name in "abc":
    with open(f"{sys.argv[1]}/{name}", "w") as file:
        file.write(name)
time.sleep(float(sys.argv[2]))
"""


def names(folder: Path) -> str:
    return "".join(sorted(path.name for path in folder.iterdir()))


@pytest.mark.slow
def test_a_kill_comes_before_the_operation_or_at_the_moment_that_was_drawn(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(WRITES)
    for number, (wait_s, wrote) in enumerate([("0", "abc"), ("0", "ab"), ("60", "abc")]):
        out = tmp_path / str(number)
        out.mkdir()
        command = Command((str(tmp_path / "script.py"), str(out), wait_s), out)
        if number == 0:
            ended = run(command, tmp_path)
            assert (ended.codes, ended.operations, ended.was_killed) == ([0], [3], False)
        else:
            assert (
                kill_at(command, tmp_path, 0, 3) if number == 1 else kill_after(command, tmp_path, [0], 5)
            ).was_killed
        assert names(out) == wrote


def test_what_is_torn_and_what_is_left_over(tmp_path: Path) -> None:
    old, new = {"a": b"1", "b": b"1"}, {"a": b"2", "b": b"2"}
    assert all(is_whole(found, [old, new]) for found in ({}, old, new))
    assert not is_whole({"a": b"1", "b": b"2"}, [old, new])
    assert not is_whole(old, [new])
    for name in ("step-00000001", "step-00000002.incomplete", "step-00000002.replaced", "results.json.part"):
        (tmp_path / name).mkdir()
    assert len(left_over(tmp_path)) == 3


@pytest.mark.slow
@pytest.mark.exhaustive
def test_runs_and_commands_that_are_killed_end_as_undisturbed_ones(tmp_path: Path) -> None:
    preload()
    test = KillTest(tmp_path, seed=0)
    test.prepare()
    for strategy in ("single", "fsdp"):
        found = test.runs(strategy, 2)
        assert found.pop("runs") >= 1  # some end before the kill that was drawn
        assert found == {"kills": 2, "not the same": 0, "left over": 0, "stayed": 0}
    for command in ("build", "convert", "export", "evaluate"):
        assert test.command(command, 2) == {"kills": 2, "torn": 0, "not the same": 0, "left over": 0}
