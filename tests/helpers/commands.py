"""Commands as a user types them, in processes that have their imports behind them, and waiting for what they do.

Each command is a process of its own, forked off a server that has imported torch and friends once: importing them takes
longer than most commands do. What a command may import is held by tests that start an interpreter of their own.
"""

import json
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import TypeVar

ROOT = Path(__file__).parents[2]
# Of everything that must end or come by itself: no test is about how fast, and the machine may be busy.
PATIENCE_S = 300.0


def command(
    script: str | Path, *arguments: str | Path, folder: Path = Path(), environ: Mapping[str, str] | None = None
) -> CompletedProcess[str]:
    """Runs a script of this project (`tools/shard.py`) or a module (`mres.config`) in `folder` (this one) to its end.

    `environ` is the whole environment; by default that of the test.
    """
    words = [str(script), *map(str, arguments)]
    with tempfile.TemporaryDirectory() as kept:
        out, err = Path(kept, "out.txt"), Path(kept, "err.txt")
        environ = dict(os.environ if environ is None else environ)
        process = multiprocessing.get_context("forkserver").Process(
            target=_run, args=(words, folder.resolve(), environ, out, err)
        )
        process.start()
        try:
            process.join(PATIENCE_S)
            assert process.exitcode is not None, f"still running after {PATIENCE_S:g} s: {words}\n{err.read_text()}"
        finally:
            process.kill()
        return CompletedProcess(words, process.exitcode, out.read_text(), err.read_text())


HEAVY = {
    "torch", "timm", "open_clip", "deepspeed", "webdataset", "streaming", "pycocotools", "matplotlib", "submitit", "lmdb",
    "pyarrow", "fsspec", "boto3",
}  # fmt: skip
_IN_TURN = """
import contextlib, io, json, os, runpy, sys
script, folder, heavy, commands = sys.argv[1], *map(json.loads, sys.argv[2:])
os.chdir(folder)
for words in commands:
    sys.argv, code = [script, *words], 0
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            code = end.code
    print(json.dumps([code, said.getvalue(), sorted(set(heavy) & set(sys.modules))]))
"""


def light_commands(
    script: str | Path, commands: Sequence[Sequence[str | Path]], folder: Path
) -> list[tuple[int, str, list[str]]]:
    """Runs a script with several arguments, one after another in one new interpreter: exit code, what was printed, and
    which of `HEAVY` had been imported by then."""
    given = [json.dumps(value, default=str) for value in (folder, sorted(HEAVY), commands)]
    words = [sys.executable, "-c", _IN_TURN, str(ROOT / script), *given]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def _run(words: list[str], folder: Path, environ: dict[str, str], out: Path, err: Path) -> None:
    os.environ.clear()  # those of the server that this process was forked from
    os.environ.update(environ)
    become(words, folder, out, err)


def become(words: list[str], folder: Path, out: Path, err: Path) -> None:
    """Makes this process the command: its folder, its stdout and stderr (which may be one file), its arguments."""
    multiprocessing.set_start_method(None, force=True)  # not the server's that it was forked from: Python's own
    os.chdir(folder)
    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering, encoding="utf-8") for n, buffering in ((1, -1), (2, 1)))
    sys.argv = words
    if words[0].endswith(".py"):
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    else:
        sys.modules.pop(words[0], None)  # it is to be run, not the one that is imported already
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)


T = TypeVar("T")


def wait_until(condition: Callable[[], T], what: str) -> T:
    """What `condition` returns as soon as that is true."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.02)
    return found
