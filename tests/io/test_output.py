"""A terminal that is closed, a reader that has gone and a full disk end no command that is about to save."""

import os
import subprocess
import sys
from pathlib import Path

SAYING = """
import os, sys
from mres.io.output import outlive_readers
outlive_readers()
print("before", flush=True)
os.read(3, 1)
for stream in (sys.stdout, sys.stderr):
    print("after", file=stream, flush=True)
open(sys.argv[1], "w").write("saved")
"""


def said(folder: Path, terminal: int, reader: int) -> tuple[int, str]:
    """Closes `reader`, the other end of the command's output, once it has spoken: its exit code and what it saved."""
    waits, goes = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", f"import os; os.dup2({waits}, 3)\n" + SAYING, folder / "saved"],
        stdout=terminal,
        stderr=terminal,
        pass_fds=[waits],
    )
    os.close(terminal)
    assert os.read(reader, 100).strip() == b"before"
    os.close(reader)
    os.close(goes)
    return process.wait(60), (folder / "saved").read_text()


def test_a_terminal_that_is_closed(tmp_path: Path) -> None:
    reader, terminal = os.openpty()
    assert said(tmp_path, terminal, reader) == (0, "saved")


def test_a_reader_that_has_gone(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    assert said(tmp_path, writer, reader) == (0, "saved")


def test_what_can_be_written_is(tmp_path: Path) -> None:
    code = "import sys; from mres.io.output import outlive_readers; outlive_readers(); print('à', file=sys.stderr); print(1)"
    with (tmp_path / "out").open("w") as out:
        done = subprocess.run([sys.executable, "-c", code], stdout=out, stderr=out, check=False)
    assert (done.returncode, (tmp_path / "out").read_text()) == (0, "à\n1\n")
