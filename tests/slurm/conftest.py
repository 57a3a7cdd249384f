"""A lab of SLURM for the session, idle before each test, and others with options of their own."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import slurm_lab
from slurm_lab import STEPS, Lab, Options


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each of these starts real jobs, for half a minute and more."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def can_have_labs() -> None:
    if why := slurm_lab.missing():
        pytest.skip(why)


@pytest.fixture(scope="session")
def lab_of_session(can_have_labs: None) -> Iterator[Lab]:
    lab = Lab()
    try:
        yield lab
    finally:
        lab.down()


@pytest.fixture
def lab(lab_of_session: Lab) -> Iterator[Lab]:
    """Four idle nodes; SlurmdTimeout is SLURM's default."""
    yield lab_of_session
    lab_of_session.reset()


@pytest.fixture
def lab_with(can_have_labs: None) -> Iterator[Callable[..., Lab]]:
    """Brings up one with other `slurm_lab.Options`, for this test alone."""
    up: list[Lab] = []

    def bring_up(**options: object) -> Lab:
        up.append(Lab(Options(**options)))  # type: ignore[arg-type]
        return up[-1]

    yield bring_up
    for lab in up:
        lab.down()


@pytest.fixture
def lab_config(tiny_shards: Path, tmp_path: Path) -> Path:
    """The config of a tiny run of `STEPS` steps, ten seconds long, with a checkpoint every five."""
    return slurm_lab.lab_config(tmp_path, tiny_shards, steps=STEPS)


@pytest.fixture(scope="session")
def undisturbed(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[dict]]:
    """The losses of that run on so many ranks, when nothing happens to it."""
    made: dict[int, list[dict]] = {}

    def losses(ranks: int) -> list[dict]:
        if ranks not in made:
            folder = tmp_path_factory.mktemp(f"undisturbed-{ranks}")
            config = slurm_lab.lab_config(folder, tiny_shards, steps=STEPS)
            made[ranks] = slurm_lab.undisturbed(config, folder, ranks)
        return made[ranks]

    return losses
