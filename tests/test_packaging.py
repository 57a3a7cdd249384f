"""The files that set the project up agree with each other: setup.py, constraints.txt, Makefile, docker/, .ci/."""

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12")


def pin_lines() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def pins(python: str) -> list[Requirement]:
    """The pins that hold on Linux with this Python."""
    environment = {"python_version": python, "sys_platform": "linux", "extra": ""}
    found = [Requirement(line) for line in pin_lines()]
    return [pin for pin in found if pin.marker is None or pin.marker.evaluate(environment)]


def requirements() -> list[Requirement]:
    """Every requirement in setup.py, extras included."""
    found: list[str] = []
    for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())):
        is_default = isinstance(node, ast.keyword) and node.arg == "install_requires"
        is_extra = isinstance(node, ast.Assign) and isinstance(node.value, ast.List)
        if is_default or is_extra:
            found += ast.literal_eval(node.value)
    return [Requirement(text) for text in found]


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_has_one_pin_that_satisfies_it(python: str) -> None:
    by_name: dict[str, list[Requirement]] = {}
    for pin in pins(python):
        by_name.setdefault(canonicalize_name(pin.name), []).append(pin)
    assert {name: found for name, found in by_name.items() if len(found) > 1} == {}
    needed = requirements()
    assert len(needed) > 20
    for need in needed:
        (pin,) = by_name[canonicalize_name(need.name)]
        (version,) = [specifier.version for specifier in pin.specifier]
        assert need.specifier.contains(version), f"{need} against {pin}"


def test_pins_are_exact_and_name_no_place() -> None:
    for line in pin_lines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+( ; python_version (>=|<) \"3\.\d+\")?", line), line


def test_docker_copies_what_exists_and_runs_without_root() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text()
    steps = [line for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    copies = [line.split()[1:] for line in steps if line.startswith("COPY")]
    sources = [word for words in copies for word in words[:-1] if not word.startswith("--")]
    assert sources
    assert [source for source in sources if not (ROOT / source).exists()] == []
    kinds = [line.split()[0] for line in steps]
    assert "USER" in kinds
    assert not any(line.startswith("USER root") for line in steps)
    assert kinds.index("USER") < kinds.index("CMD")
    # The pins lie in their own layer, before the code that changes every day; no version is named but the base image's.
    assert kinds.index("COPY") < steps.index("COPY --chown=mres . .")
    assert [line for line in steps if re.search(r"[a-z_]+==\d", line)] == []


def test_what_docker_needs_is_not_ignored() -> None:
    ignored = {line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")}
    assert {".venv", "runs", "data", ".git"} <= ignored
    assert not ignored & {"mres", "launch", "tools", "configs", "tests", "Makefile", "LICENSE"}


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_lists_its_targets() -> None:
    shown = subprocess.run(["make", "-C", str(ROOT)], capture_output=True, text=True, check=True).stdout
    for target in ("help", "setup", "demo", "test", "test-all", "check", "clean"):
        assert re.search(rf"^  {target}\s+\S", shown, re.MULTILINE), target


@pytest.mark.parametrize("script", [".ci/run", "tools/setup_environment.sh"])
def test_scripts_parse(script: str) -> None:
    assert subprocess.run(["bash", "-n", str(ROOT / script)], check=False).returncode == 0


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("python9", "PYTHON=python9 is no Python; mres needs Python 3.10, 3.11 or 3.12"),
        ("{fake}", "is Python 3.13.1; mres needs Python 3.10, 3.11 or 3.12"),
    ],
)
def test_wrong_python_is_named(tmp_path: Path, asked: str, words: str) -> None:
    fake = tmp_path / "python3.13"
    fake.write_text('#!/bin/sh\n[ "$1" = -V ] && echo "Python 3.13.1" && exit\nexit 1\n')
    fake.chmod(0o755)
    done = subprocess.run(
        ["sh", str(ROOT / "tools" / "setup_environment.sh"), str(tmp_path / "venv")],
        env={"PATH": "/usr/bin:/bin", "PYTHON": asked.format(fake=fake)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert words in done.stderr
    assert not (tmp_path / "venv").exists()
