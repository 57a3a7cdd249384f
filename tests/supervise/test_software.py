"""Code that no commit tells apart is told apart."""

from pathlib import Path

import pytest

from mres.supervise import software


def test_source_that_no_commit_tells_apart_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "_PACKAGE", tmp_path)
    (tmp_path / "a.py").write_text("x = 1\n")
    before = software.code_sha256()
    (tmp_path / "a.py").write_text("x = 2\n")
    assert software.code_sha256() != before
    (tmp_path / "a.py").write_text("x = 1\n")
    assert software.code_sha256() == before
