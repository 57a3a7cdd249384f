"""A rank asks itself to stop once a launcher above it is gone, and not for the end of anything else."""

import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
from commands import wait_until

RANK = """
import time
from mres.supervise.launcher import is_lost, stop_without_launcher
from mres.supervise.stop_request import StopRequest
stop = StopRequest()
stop.install()
stop_without_launcher()
print("ready", flush=True)
while not stop.requested:
    time.sleep(0.05)
print("exit code", stop.exit_code, is_lost(), flush=True)
"""
# Starts what its arguments say, and waits for it.
STARTER = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, *sys.argv[1:]]))"


@pytest.mark.parametrize(
    ("programs", "killed"),
    [
        (["torchrun"], 0),
        pytest.param(["deepspeed", "launch.sh"], 0, marks=pytest.mark.exhaustive),
        pytest.param(["submit.py", "torchrun"], 1, marks=pytest.mark.exhaustive),
    ],
)
def test_a_launcher_that_is_killed(tmp_path: Path, programs: list[str], killed: int) -> None:
    chain, log = start(tmp_path, programs)
    os.kill(chain[killed].pid, signal.SIGKILL)
    wait_until(lambda: "exit code" in log.read_text(), "the rank's end")
    assert log.read_text().splitlines()[-1] == "exit code 75 True"
    assert f"the launcher ({programs[killed]}, pid {chain[killed].pid}) is gone" in log.read_text()
    chain[0].kill()
    assert chain[-1].wait(60) in (0, None)


def test_another_parent_may_go(tmp_path: Path) -> None:
    chain, log = start(tmp_path, ["my_torchrun.py"])
    os.kill(chain[0].pid, signal.SIGKILL)
    time.sleep(2)
    assert "exit code" not in log.read_text()
    chain[-1].kill()


def start(folder: Path, programs: list[str]) -> tuple[list[psutil.Process], Path]:
    """The programs, each started by the one before it, and a rank; what the rank says goes into the file."""
    for name, content in {**dict.fromkeys(programs, STARTER), "rank.py": RANK}.items():
        (folder / name).write_text(content)
    log = folder / "log.txt"
    with log.open("w") as out:
        first = psutil.Popen([sys.executable, *programs, "rank.py"], cwd=folder, stdout=out, stderr=out)
    wait_until(lambda: "ready" in log.read_text(), "the rank")
    return [first, *first.children(recursive=True)], log
