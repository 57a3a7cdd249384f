"""Jobs on this machine, for real: processes started by submitit, stopped, crashed, restarted."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from commands import PATIENCE_S, wait_until

from mres.cluster.job import TrainJob
from mres.cluster.local import _visible_gpus, run_debug, run_local
from mres.cluster.request import JobRequest
from mres.supervise.slurm_env import free_port

pytestmark = pytest.mark.usefixtures("entries")


def run(folder: Path, entry: str, *argv: str, tasks: int = 2, max_requeues: int = 0) -> int:
    request = JobRequest("local", 1, 0, tasks, cpus_per_task=1, max_requeues=max_requeues)
    job = TrainJob("local", argv, max_requeues, free_port(), entry=f"tiny_entry:{entry}")
    return run_local(job, request, folder / "submitit", grace_s=1)


def test_tasks_get_their_ranks_and_rank_0_is_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "note_rank", str(tmp_path)) == 0
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert [(f["RANK"], f["LOCAL_RANK"], f["LOCAL_WORLD_SIZE"]) for f in found] == [("0", "0", "2"), ("1", "1", "2")]
    assert {(f["WORLD_SIZE"], f["MASTER_ADDR"]) for f in found} == {("2", "127.0.0.1")}
    assert found[0]["MASTER_PORT"] == found[1]["MASTER_PORT"]
    shown = capfd.readouterr().out
    assert "hello from rank 0" in shown
    assert "hello from rank 1" not in shown
    assert len(list((tmp_path / "submitit").glob("*_log.out"))) == 2


def test_failed_rank_ends_the_job_with_its_exit_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "rank_1_fails", "7") == 7
    said = capfd.readouterr().err
    assert "a rank has failed and 1 still run" in said
    assert re.search(r"rank 1 ended with exit code 7; its log: .*_1_log\.out", said)


def test_exception_is_exit_code_1_and_lies_in_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "rank_1_raises") == 1
    assert "rank 1 ended with exit code 1" in capfd.readouterr().err
    (log,) = (tmp_path / "submitit").glob("*_1_log.out")
    assert "a rank's own trouble" in log.read_text()


def test_user_error_is_exit_code_2_and_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "user_error") == 2
    shown = capfd.readouterr().out
    assert shown.count("error: data.train: no such folder") == 1
    assert "Traceback" not in shown


def test_preempted_tasks_start_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "save_and_stop", str(tmp_path), max_requeues=5) == 0
    shown = capfd.readouterr().out
    assert shown.index("everything is saved, starting again") < shown.index("rank 0 goes on")


def test_preempted_tasks_end_where_no_restart_was_asked_for(tmp_path: Path) -> None:
    assert run(tmp_path, "save_and_stop", str(tmp_path)) == 75


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_lets_the_tasks_save(tmp_path: Path, number: signal.Signals) -> None:
    process, _ = start_until_ready(tmp_path)
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "stopping: the tasks save" in err
    assert "saved\n" in out
    assert {path.name for path in tmp_path.glob("saved*")} == {"saved0", "saved1"}


def test_second_stop_is_at_once(tmp_path: Path) -> None:
    process, task = start_until_ready(tmp_path)
    task.suspend()  # a task that does not react
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert "stopping" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert not task.is_running() or task.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("who", ["submit.py", pytest.param("controller", marks=pytest.mark.exhaustive)])
def test_killed_it_lets_the_tasks_save(tmp_path: Path, who: str) -> None:
    process, task = start_until_ready(tmp_path)
    victim = psutil.Process(process.pid) if who == "submit.py" else task.parent()
    assert victim is not None
    victim.kill()
    wait_until(lambda: len(list(tmp_path.glob("saved*"))) == 2, "the tasks' saves")
    psutil.wait_procs([task], timeout=PATIENCE_S)
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in (p.info["cmdline"] or [])], (
        "none goes on"
    )
    process.communicate(timeout=PATIENCE_S)


@pytest.mark.exhaustive
def test_a_closed_terminal_leaves_it_running(tmp_path: Path) -> None:
    process, task = start_until_ready(tmp_path)
    process.send_signal(signal.SIGHUP)
    task.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=3)
    assert task.is_running()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_S)


def start_until_ready(folder: Path) -> tuple["subprocess.Popen[str]", psutil.Process]:
    """A process that runs `run_local` on two tasks of `until_stopped`, and its rank 0."""
    (folder / "submit.py").write_text(
        "import sys; from pathlib import Path; sys.path[:0] = sys.argv[2:]; from test_local_job import run;"
        "sys.exit(run(Path(sys.argv[1]), 'until_stopped', sys.argv[1], max_requeues=5))"
    )
    process = subprocess.Popen(
        [sys.executable, str(folder / "submit.py"), str(folder), *sys.path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )
    assert process.stdout is not None
    pid = None
    for line in process.stdout:
        pid = int(line.split()[1]) if line.startswith("pid ") else pid
        if line == "ready\n":
            break
    assert pid is not None, process.communicate()
    logs = folder / "submitit"
    wait_until(lambda: any("ready" in log.read_text() for log in logs.glob("*_1_log.out")), "the other rank")
    return process, psutil.Process(pid)


def test_debug_runs_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    job = TrainJob("debug", (str(tmp_path),), 0, entry="tiny_entry:note_rank")
    assert run_debug(job, tmp_path / "submitit") == 0
    assert json.loads((tmp_path / "rank0.json").read_text())["WORLD_SIZE"] == "1"
    assert run_debug(TrainJob("debug", (), 0, entry="tiny_entry:always_preempted"), tmp_path) == 75


@pytest.mark.parametrize(
    ("chosen", "gpus"), [(None, ()), ("", ()), ("2,3", (2, 3)), ("GPU-4f1,GPU-77a", ()), ("5", (5,))]
)
def test_gpus_that_the_user_chose(chosen: str | None, gpus: tuple[int, ...]) -> None:
    assert _visible_gpus(chosen) == gpus
