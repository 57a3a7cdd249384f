"""The doctor on this machine, on what a config asks of it, and on the folders of runs that hang or died."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import asdict
from pathlib import Path

import pytest
from commands import command
from tiny_run import TRAIN, start, wait, write_config

from mres.config import load_config
from mres.doctor import disk, machine
from mres.doctor.load import Load, load_of
from mres.doctor.run import main
from mres.errors import UserError
from mres.supervise import hang
from mres.supervise.finding import Finding, has_problem
from mres.supervise.heartbeat import ENDED, FAILED, LOST, PHASES, Beat, file_name, read_beats

ROOT = Path(__file__).parents[2]
LOAD = Load(ranks=2, workers=3, prefetch=4, threads=None, batch_bytes=1000, checkpoint_bytes=1000)
Usage = namedtuple("Usage", "total used free")


def doctor(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return command("tools/doctor.py", *arguments)


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.what: finding for finding in findings}


# ---- before a run


def test_the_command_says_of_a_run_that_can_be_that_nothing_is_wrong(tmp_path: Path, tiny_shards: Path) -> None:
    config = write_config(tmp_path, tiny_shards)
    done = doctor("--config", str(config), f"run.dir={tmp_path}", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["problem"] is False
    levels = {finding["what"]: finding["level"] for finding in told["findings"]}
    assert {"packages", "GPUs", "cores", "/dev/shm", "open files", "run folder", "room", "clock", "data"} <= set(levels)
    assert levels["publishing"] == levels["data"] == "ok"


def test_data_that_are_not_there_are_a_problem(
    tmp_path: Path, tiny_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, tiny_shards)
    assert main(["--config", str(config), "data.train=/nowhere", f"run.dir={tmp_path}"]) == 1
    shown = capsys.readouterr().out
    assert "problem  data: no shard set at '/nowhere'" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a", "b"], "name one run's folder alone"),
        (["a", "x.y=1"], "name one run's folder alone"),
        (["x.y=1"], "name it with --config"),
        (["/nowhere"], "no heartbeats in '/nowhere/heartbeat'"),
        (["--ranks", "0"], "--ranks=0 is no number of processes; name how many run on this machine, from 1 on"),
        (["--ranks", "-2"], "--ranks=-2 is no number of processes"),
        (["a", "--ranks", "2"], "--ranks=2 has no effect with a run's folder; remove it"),
    ],
)
def test_arguments_that_do_not_fit(arguments: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        main(arguments)


def test_an_environment_that_makes_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "many")
    with pytest.raises(UserError, match="LOCAL_WORLD_SIZE='many' is no number of processes"):
        main([])


def test_what_a_config_asks_of_a_machine(tmp_path: Path) -> None:
    config = load_config(None, ["data.images_per_batch=8", "data.workers=3", "data.prefetch=2", "checkpoint.keep=2"])
    load = load_of(config, ranks=4)
    side, grid, k, length = (
        96,
        96 // config.model.mask_stride,
        config.data.expressions_per_image,
        config.model.text_length,
    )
    assert load.batch_bytes == 2 * (3 * side**2 + k * grid**2 + 4 * k * length + k)
    assert load.shared_memory_bytes == 4 * (3 * 2 + 1) * load.batch_bytes
    from mres.model.unires.unires import UniRES

    parameters = sum(p.numel() for p in UniRES(config.model).parameters())
    assert load.checkpoint_bytes == 3 * 3 * 4 * parameters


@pytest.mark.parametrize(
    ("free", "level"),
    [(LOAD.shared_memory_bytes - 1, "problem"), (LOAD.shared_memory_bytes + 1, "warning"), (10**6, "ok")],
)
def test_shared_memory_is_compared_with_what_waits_in_it(
    monkeypatch: pytest.MonkeyPatch, free: int, level: str
) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: Usage(free, 0, free))
    assert machine.check_shared_memory(LOAD).level == level


@pytest.mark.parametrize(("soft", "level"), [(1024, "problem"), (4096, "ok")])
def test_open_files(soft: int, level: str) -> None:
    code = (
        "import resource; from mres.doctor.machine import check_limits;"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, resource.getrlimit(resource.RLIMIT_NOFILE)[1]));"
        "print(check_limits(None, gpus=False)[0].level)"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == level


@pytest.mark.parametrize(("ranks", "workers", "level"), [(1, 0, "ok"), (1, 10_000, "warning"), (10_000, 0, "warning")])
def test_cores_against_workers(ranks: int, workers: int, level: str) -> None:
    assert machine.check_cores(Load(ranks, workers, 2, 1, 1, 1)).level == level


def test_one_core_of_many_is_what_srun_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: {0})
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(machine, "_cgroup_cores", lambda: None)
    finding = machine.check_cores(None)
    assert (finding.level, "--cpus-per-task" in finding.remedy) == ("warning", True)


def test_leftovers_of_dead_processes_are_named_and_those_of_living_ones_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_SHM", tmp_path)
    (tmp_path / f"torch_{os.getpid()}_7_0").touch()
    assert [f.level for f in machine.check_leftovers()] == ["ok"]
    child = subprocess.Popen(["true"])
    child.wait()
    (tmp_path / f"torch_{child.pid}_7_0").touch()
    (tmp_path / "000000_locals").touch()
    found = machine.check_leftovers()
    assert [f.level for f in found] == ["warning", "warning"]
    assert f"torch_{child.pid}_7_0" in found[0].found
    assert "streaming" in found[1].found


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/a/b/c", "lustre"), ("/a/bc", "ext4"), ("/with blank/x", "nfs4"), ("/twice/x", "tmpfs"), ("/", "ext4")],
)
def test_the_file_system_of_a_path(tmp_path: Path, path: str, kind: str) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "d / ext4 rw 0 0\nd /a/b lustre rw 0 0\nd /with\\040blank nfs4 rw 0 0\nd /twice xfs rw 0 0\nd /twice tmpfs rw 0 0\n"
    )
    assert disk.file_system(Path(path), mounts) == kind


def test_a_run_folder_in_memory_and_one_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "file_system", lambda path: "tmpfs")
    found = by_name(disk.check_run_dir(tmp_path / "not" / "yet", Load(1, 0, 1, 1, 1, 2**62)))
    assert found["run folder"].level == "warning"
    assert found["room"].level == "problem"
    assert found["publishing"].level == "ok"
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_a_folder_that_takes_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "write_atomically", full)
    assert by_name(disk.check_run_dir(tmp_path, None))["publishing"].level == "problem"


@pytest.mark.parametrize(("ahead", "level"), [(0.1, "ok"), (60, "warning"), (-60, "warning")])
def test_clocks_that_differ(ahead: float, level: str) -> None:
    assert disk._check_clock(ahead, seconds=0.2).level == level


# ---- of a run


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
        deadline = time.monotonic() + 120
        while True:
            findings = hang.diagnose(run_dir) if len(read_beats(run_dir)) == 2 else []
            if condition(findings):
                return findings
            assert time.monotonic() < deadline, findings
            time.sleep(0.1)

    try:
        until(lambda findings: findings and min(b.step for b in read_beats(run_dir).values()) > 2)
        os.kill(processes[1].pid, signal.SIGSTOP)
        found = until(has_problem)
        done = doctor(str(run_dir))
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
