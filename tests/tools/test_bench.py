"""tools/bench.py measures both sides and prints their ratio; how large it is, a noisy machine cannot assert."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "tools" / "bench.py"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grouping", "loop"])
def test_the_ratio_follows_from_the_figures(name: str) -> None:
    command = [sys.executable, str(BENCH), name, "--json", "--rounds", "1", "--images", "1", "--k", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    figures = found["expressions_per_s" if name == "grouping" else "seconds_a_step"]
    mine, reference = figures.values()
    assert mine > 0
    assert found["ratio"] == pytest.approx(mine / reference)


def test_a_count_of_zero_is_refused() -> None:
    done = subprocess.run([sys.executable, str(BENCH), "loop", "--k", "0"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: --k 0 must be at least 1\n"
