"""A user's own file or module: found, run once, and refused by name where it cannot be used."""

import pickle
import sys
from pathlib import Path

import pytest

from mres.errors import UserError
from mres.io.plugins import load_object

FILE = """
from __future__ import annotations
import os
from dataclasses import dataclass

@dataclass
class Mine:
    value: int = 3
"""


def test_a_file_is_run_once_and_what_it_makes_can_be_pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    mine = load_object("mine.py:Mine", "model.kind")
    assert mine is load_object(f"{tmp_path}/mine.py:Mine", "model.kind")
    assert pickle.loads(pickle.dumps(mine(5))).value == 5


def test_a_module_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "part.py").write_text("SPEC = 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_object("own_package.part:SPEC", "model.kind") == 7


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("mine.py", ["mine.py", "path/to/file.py:NAME", "package.module:NAME"]),
        ("mine.py:", ["path/to/file.py:NAME"]),
        ("none.py:Mine", ["there is no file 'none.py'"]),
        ("mine.py:Mime", ["'mine.py' has no 'Mime'", "did you mean 'Mine'?"]),
        ("mine.py:Other", ["it defines Mine"]),
        ("raises.py:Mine", ["ZeroDivisionError", "raises.py:2"]),
        ("syntax.py:Mine", ["SyntaxError", "syntax.py:1"]),
        ("missing.py:Mine", ["no_such_dependency", "missing.py:1"]),
        ("no_such_package.part:Mine", ["there is no module 'no_such_package'", "PYTHONPATH"]),
        ("os.nothing:Mine", ["'os"]),
    ],
)
def test_what_cannot_be_loaded_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str, words: list[str]
) -> None:
    (tmp_path / "mine.py").write_text(FILE)
    (tmp_path / "raises.py").write_text("x = 1\nx / 0\n")
    (tmp_path / "syntax.py").write_text("def\n")
    (tmp_path / "missing.py").write_text("import no_such_dependency\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as raised:
        load_object(reference, "train.callbacks")
    assert all(word in str(raised.value) for word in [f"train.callbacks='{reference}'", *words]), raised.value
    assert not any("raises" in name or "syntax" in name for name in sys.modules if name.startswith("mres_plugin_"))
