"""A fault at every system call that changes files, in everything that mres writes: what is there is the old or the new, whole,
and the same command once more makes what an undisturbed one makes."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import PATIENCE_S, ROOT
from faulty_disk import COMMANDS

HELPERS = ROOT / "tests" / "helpers"
# Of so many calls one, beside those of names, at each of which the process is killed. All calls with all faults take minutes
# where checkpoints are read: by hand, `tests/helpers/faulty_disk.py` with strides of 1.
MANY = {"build": 3, "convert": 37, "export": 67, "evaluate": 1, "predict": 1, "start": 1, "save": 31}
SOME = {"build": 17, "evaluate": 9, "predict": 9, "start": 13}


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("library") / "faulty_disk.so"
    source = HELPERS / "faulty_disk.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-o", path, source, "-ldl"], check=True)
    return path


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[Path]:
    """A folder, if there is one in which it costs nothing to sync a file."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def problems(library: Path, runs: Path, folder: Path, strides: dict[str, int]) -> dict[str, list[str]]:
    environ = {
        **os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": os.pathsep.join(map(str, (ROOT, HELPERS, ROOT / "tools"))),
    }  # fmt: skip
    given = [f"{name}={stride}" for name, stride in strides.items()]
    command = [sys.executable, str(HELPERS / "faulty_disk.py"), str(library), str(runs / "single"), str(folder), *given]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=PATIENCE_S * 4, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert all(result["calls"] >= 14 for result in found.values()), found
    return {name: result["problems"] for name, result in found.items()}


@pytest.mark.slow
def test_a_fault_at_some_calls(library: Path, runs: Path, in_memory: Path) -> None:
    assert problems(library, runs, in_memory, SOME) == {name: [] for name in SOME}


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_fault_at_many_calls(library: Path, runs: Path, in_memory: Path) -> None:
    assert MANY.keys() == COMMANDS.keys()
    assert problems(library, runs, in_memory, MANY) == {name: [] for name in COMMANDS}
