"""Which groups of ranks may share a copy of the model."""

import pytest

from mres.errors import UserError
from mres.parallel.config import ParallelConfig
from mres.parallel.mesh import check_world


@pytest.mark.parametrize(
    ("shard_ranks", "size", "local_size"),
    [(8, 128, 8), (4, 128, 8), (1, 4, 4), (4, 4, 4), (16, 128, 8), (128, 128, 8), (2, 2, 1), (3, 9, 3)],
)
def test_groups_that_fit(shard_ranks: int, size: int, local_size: int) -> None:
    check_world(ParallelConfig(shard_ranks=shard_ranks), size, local_size)


@pytest.mark.parametrize(
    ("shard_ranks", "size", "local_size", "words"),
    [
        (3, 8, 8, "parallel.shard_ranks=3 does not divide the 8 ranks of this run (WORLD_SIZE); use one of 1, 2, 4, 8"),
        (16, 8, 8, "use one of 1, 2, 4, 8"),
        (6, 12, 4, "would cut across machines of 4 ranks (LOCAL_WORLD_SIZE) unevenly"),
        (4, 24, 6, "use a divisor or a multiple of 6 that divides 24"),
    ],
)
def test_groups_that_do_not(shard_ranks: int, size: int, local_size: int, words: str) -> None:
    with pytest.raises(UserError) as caught:
        check_world(ParallelConfig(shard_ranks=shard_ranks), size, local_size)
    assert words in str(caught.value)
