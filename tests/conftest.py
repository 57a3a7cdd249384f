"""What all tests share: one tiny shard set, no more threads than a test needs, and no clock that fails a test."""

import multiprocessing
import os
import signal
from pathlib import Path

import hypothesis
import pytest

# A suite that was started in the background ignores Ctrl-C and hands that on; tests send real ones to what they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the tests are small, the machine is shared

# Before anything starts the server that processes are forked from; there is one for all tests.
multiprocessing.set_forkserver_preload(["preloaded"])

hypothesis.settings.register_profile("mres", deadline=None)
hypothesis.settings.load_profile("mres")

NUM_IMAGES = 22


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 small images of four sizes in three shards (`tiny_data.make_record`); not to be changed."""
    from tiny_data import make_record

    from mres.shards.writer import WriteOptions, write_shards
    from mres.sources.source import Source

    folder = tmp_path_factory.mktemp("tiny") / "shards"
    records = [make_record(i) for i in range(NUM_IMAGES)]
    write_shards(Source.of(records, {"format": "tiny"}, "tiny"), folder, WriteOptions(8))
    return folder
