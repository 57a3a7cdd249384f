"""The way for tasks to find `tiny_entry`."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks can import `tiny_entry`."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
