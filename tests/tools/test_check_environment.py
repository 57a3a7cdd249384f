"""`tools/check_environment.py` against the environment that the tests run in."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def check(constraints: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "tools" / "check_environment.py"), str(constraints), *options]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)


def test_this_environment_is_the_pinned_one() -> None:
    done = check(ROOT / "constraints.txt")
    assert done.returncode == 0, done.stderr
    assert "packages as pinned in" in done.stdout


def test_a_difference_is_named(tmp_path: Path) -> None:
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    changed = [line for line in pins if not line.startswith(("rich==", "submitit=="))]
    (tmp_path / "pins.txt").write_text("\n".join([*changed, "rich==0.1"]))
    done = check(tmp_path / "pins.txt")
    assert done.returncode == 2
    assert f"rich {version('rich')} is not the pinned ==0.1" in done.stderr
    assert f"submitit {version('submitit')} has no pin" in done.stderr


@pytest.mark.parametrize("line", ["rich>=1", "rich == ", "a b c"])
def test_what_is_no_pin_is_named_with_its_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "pins.txt").write_text(f"# pins\n{line}\n")
    done = check(tmp_path / "pins.txt")
    assert done.returncode == 2
    assert "pins.txt:2: " in done.stderr
