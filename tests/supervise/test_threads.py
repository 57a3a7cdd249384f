"""How many threads a rank takes: what was asked for, else its share of the cores that ranks of this machine share."""

import os

import pytest
import torch

from mres.errors import UserError
from mres.supervise.threads import omp_threads, set_threads, share_of_cores
from mres.supervise.world import join_world, leave_world
from mres.testing import run_distributed

CORES = frozenset(range(16))


@pytest.mark.parametrize(
    ("mine", "of_ranks", "share"),
    [
        (CORES, [CORES], 16),
        (CORES, [CORES] * 4, 4),  # torchrun, or srun without binding
        (CORES, [CORES] * 5, 3),
        (CORES, [CORES] * 40, 1),
        (frozenset({4, 5, 6, 7}), [frozenset(range(n, n + 4)) for n in (0, 4, 8, 12)], 4),  # srun bound each task
        (
            frozenset({0, 1, 2, 3}),
            [frozenset({0, 1, 2, 3})] * 2 + [CORES - {0, 1, 2, 3}] * 2,
            2,
        ),  # torchrun in two tasks
    ],
)
def test_each_core_is_divided_by_the_ranks_that_may_run_on_it(
    mine: frozenset[int], of_ranks: list[frozenset[int]], share: int
) -> None:
    assert share_of_cores(mine, of_ranks) == share


def _two_ranks(bound: bool) -> list[tuple[int, str]]:
    world = join_world(60)
    cores = sorted(os.sched_getaffinity(0))
    if bound:
        half = len(cores) // 2
        os.sched_setaffinity(0, (cores[:half] if world.rank == 0 else cores[half:]) or cores)
    found = []
    for omp, wanted in ((None, None), ("3", None), ("3,2", None), ("3", 2)):
        os.environ.pop("OMP_NUM_THREADS", None)
        if omp:
            os.environ["OMP_NUM_THREADS"] = omp
        said = set_threads(wanted)
        found.append((torch.get_num_threads(), said))
    leave_world()
    return found


@pytest.mark.parametrize("bound", [True, False])
def test_what_was_asked_for_comes_first_and_is_said(bound: bool) -> None:
    cores = len(os.sched_getaffinity(0))
    for share, *asked in run_distributed(_two_ranks, 2, bound):
        assert share[0] == max(1, cores // 2)
        assert "share of the cores" in share[1]
        assert [number for number, _ in asked] == [3, 3, 2]
        assert ["OMP_NUM_THREADS" in said for _, said in asked] == [True, True, False]
        assert "train.threads" in asked[2][1]


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", "9" * 30, "٣"])
def test_a_number_of_threads_that_is_none_is_named(text: str) -> None:
    with pytest.raises(UserError, match="OMP_NUM_THREADS"):
        omp_threads({"OMP_NUM_THREADS": text})
    assert omp_threads({"OMP_NUM_THREADS": " "}) is omp_threads({}) is None
