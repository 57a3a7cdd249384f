"""A folder of a user's own data."""

from pathlib import Path

import pytest
from made_jsonl import make_data


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """own.jsonl (5 records, one of them in the split val) and images/."""
    return make_data(tmp_path, 5)
