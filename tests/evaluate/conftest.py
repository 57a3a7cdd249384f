"""Made runs, each built once."""

from pathlib import Path

import pytest
from made_run import make_run

from mres.shards.reader import ShardSet


@pytest.fixture(scope="session")
def made_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ShardSet]:
    """The folder of a finished run and the shard set it was evaluated on; not to be changed."""
    return make_run(tmp_path_factory.mktemp("made"))
