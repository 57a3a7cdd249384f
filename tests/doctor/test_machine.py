"""The doctor before a run: on this machine, and on what a config asks of it."""

import json
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from commands import command
from tiny_run import write_config

from mres.config import load_config
from mres.doctor import disk, machine
from mres.doctor.run import main
from mres.errors import UserError
from mres.supervise import machine as needs
from mres.supervise.finding import Finding
from mres.supervise.load import Load, load_of

ROOT = Path(__file__).parents[2]
LOAD = Load(ranks=2, workers=3, prefetch=4, threads=None, batch_bytes=1000, checkpoint_bytes=1000)
Usage = namedtuple("Usage", "total used free")


def doctor(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return command("tools/doctor.py", *arguments)


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.what: finding for finding in findings}


def test_the_command_says_of_a_run_that_can_be_that_nothing_is_wrong(tmp_path: Path, tiny_shards: Path) -> None:
    config = write_config(tmp_path, tiny_shards)
    done = doctor("--config", str(config), f"run.dir={tmp_path}", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["problem"] is False
    levels = {finding["what"]: finding["level"] for finding in told["findings"]}
    assert {"packages", "GPUs", "cores", "/dev/shm", "open files", "run folder", "room", "clock", "data"} <= set(levels)
    assert levels["committing"] == levels["data"] == "ok"


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
    monkeypatch.setattr(needs.shutil, "disk_usage", lambda path: Usage(free, 0, free))
    assert needs.check_shared_memory(LOAD).level == level


@pytest.mark.parametrize(("soft", "level"), [(1024, "problem"), (4096, "ok")])
def test_open_files(soft: int, level: str) -> None:
    code = (
        "import resource; from mres.supervise.machine import check_limits;"
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
    monkeypatch.setattr(machine, "SHM", tmp_path)
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
    assert found["committing"].level == "ok"
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_a_folder_that_takes_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "write_atomically", full)
    assert by_name(disk.check_run_dir(tmp_path, None))["committing"].level == "problem"


@pytest.mark.parametrize(("ahead", "level"), [(0.1, "ok"), (60, "warning"), (-60, "warning")])
def test_clocks_that_differ(ahead: float, level: str) -> None:
    assert disk._check_clock(ahead, seconds=0.2).level == level
