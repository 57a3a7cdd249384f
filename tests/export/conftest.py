"""One run for all tests of this folder."""

import pytest
from trained_run import Trained, train_and_evaluate


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train_and_evaluate(tmp_path_factory.mktemp("export"))
