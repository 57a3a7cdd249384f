"""Real runs to load and convert, and a real disk that is soon full."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_run


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
