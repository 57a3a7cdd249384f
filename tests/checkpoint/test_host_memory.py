"""Memory that is left: of the machine, and of a control group with a limit, as SLURM and containers set them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mres.checkpoint import host_memory
from mres.checkpoint.host_memory import available_bytes, machines_without_room

LIMIT = 400_000_000


def test_without_a_limit_it_is_the_machines() -> None:
    assert 0 < available_bytes() <= psutil.virtual_memory().total


@pytest.fixture
def group() -> Iterator[Path]:
    """A real control group with a limit."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    first = any(":memory:" in line for line in lines)
    root, limit = (host_memory._V1.root, "memory.limit_in_bytes") if first else (host_memory._V2.root, "memory.max")
    folder = root / f"mres-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / limit).write_text(str(LIMIT))
    except OSError:
        pytest.skip("only root can make a control group with a limit of memory")
    yield folder
    folder.rmdir()


def test_a_groups_limit_counts(group: Path) -> None:
    code = """
import os, sys
from pathlib import Path
Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
from mres.checkpoint.host_memory import available_bytes
before = available_bytes()
held = bytearray(os.urandom(1 << 20)) * 100
print(before, before - available_bytes())
"""
    done = subprocess.run([sys.executable, "-c", code, str(group)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, taken = map(int, done.stdout.split())
    assert LIMIT / 2 < before < LIMIT
    assert 90 << 20 < taken < 150 << 20


def test_limits_are_found_in_both_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files as the kernel has them: version 2 here, where the parent's limit is the narrower one."""
    job = tmp_path / "job" / "step"
    job.mkdir(parents=True)
    for folder, limit, used in ((job, "max", 5), (job.parent, "1000", 700)):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text("anon 400\ninactive_file 50\n")
    mine = tmp_path / "cgroup"
    mine.write_text("3:cpu:/elsewhere\n0::/job/step\n")
    monkeypatch.setattr(
        host_memory, "_V2", host_memory._Version(tmp_path, "memory.max", "memory.current", "inactive_file")
    )
    monkeypatch.setattr(host_memory, "_MINE", mine)
    assert available_bytes() == 350


def test_machines_are_looked_at_with_all_their_ranks() -> None:
    assert machines_without_room([("a", 40, 100), ("a", 40, 90), ("b", 80, 100)]) == []
    (text,) = machines_without_room([("a", 50_000_000, 100_000_000), ("a", 50_000_000, 90_000_000), ("b", 80, 100)])
    assert text == "'a' has 90 MB of memory left, and copies of its ranks' state take 100 MB"
