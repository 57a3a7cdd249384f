"""What all tests share: one tiny shard set, no more threads than a test needs, and no clock that fails a test."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import preloaded
import pytest
import tiny_run

# A suite that was started in the background, or under nohup, ignores signals and hands that on; tests send real ones.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the tests are small, the machine is shared

preloaded.preload()

# Few examples where somebody waits for them; `make test-all` asks for the thorough ones.
hypothesis.settings.register_profile("mres", deadline=None, max_examples=25)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=100)
hypothesis.settings.load_profile("mres")

NUM_IMAGES = 22


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 small images of four sizes in three shards (`tiny_data.make_record`); not to be changed."""
    from tiny_data import make_record

    from mres.shards.writer import WriteOptions, write_shards
    from mres.sources.source import RecordSource

    folder = tmp_path_factory.mktemp("tiny") / "shards"
    records = [make_record(i) for i in range(NUM_IMAGES)]
    write_shards(RecordSource.of(records, {"format": "tiny"}, "tiny"), folder, WriteOptions(8))
    return folder


@pytest.fixture(scope="session")
def config(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.write_config(tmp_path_factory.mktemp("config"), tiny_shards)


@pytest.fixture(scope="session")
def runs(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ "single", and "tied": FSDP on two ranks, its two filters are one; two steps each. Not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    overrides = ["--config", str(config), "train.steps=2", "checkpoint.every=1"]
    for name, world_size, more in (
        ("single", 1, []),
        ("tied", 2, ["parallel.strategy=fsdp", "model.filter_shared=true"]),
    ):
        arguments = [*overrides, f"run.name={name}", *more]
        done = tiny_run.run(tiny_run.TRAIN, arguments, folder, world_size=world_size)
        assert done.codes == [0] * world_size, done.output
    return folder / "runs"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path | None]:
    """A folder with 1 MB, or None where this user may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    mounted = os.getuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    yield folder if mounted else None
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)
