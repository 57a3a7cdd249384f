"""Joining the ranks that a launcher started, and what they tell one another."""

import pytest
import torch
import torch.distributed as dist

from mres.errors import UserError
from mres.parallel.config import ParallelConfig
from mres.parallel.factory import build_strategy
from mres.parallel.mesh import check_world
from mres.supervise.world import collectives_begun, join_world, leave_world
from mres.testing import run_distributed

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
DDP = ParallelConfig(strategy="ddp")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_without_a_launcher_one_rank_needs_no_address(environment: pytest.MonkeyPatch) -> None:
    world = join_world(ParallelConfig(strategy="single").timeout_s)
    try:
        assert (world.rank, world.size, world.local_rank, world.local_size, world.is_main) == (0, 1, 0, 1, True)
        assert dist.get_world_size() == 1
    finally:
        leave_world()
    assert not dist.is_initialized()
    leave_world()  # twice does no harm


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"RANK": "one", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK='one'"),
        ({"RANK": "0", "WORLD_SIZE": "-2", "LOCAL_RANK": "0"}, "WORLD_SIZE='-2'"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK=2 does not fit WORLD_SIZE=2"),
        ({"RANK": "0", "WORLD_SIZE": "0", "LOCAL_RANK": "0"}, "WORLD_SIZE=0 is not a number of ranks"),
        ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "2"}, "LOCAL_RANK=2 does not fit"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "LOCAL_RANK"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "MASTER_ADDR"),
    ],
)
def test_variables_that_do_not_fit_are_named(
    variables: dict[str, str], named: str, environment: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        environment.setenv(name, value)
    with pytest.raises(UserError) as caught:
        join_world(DDP.timeout_s)
    assert named in str(caught.value)
    assert "torchrun" in str(caught.value)
    assert not dist.is_initialized()


def test_single_on_several_ranks_names_the_strategies_that_can() -> None:
    with pytest.raises(UserError, match=r"launched on 2; use parallel\.strategy=ddp, fsdp or zero"):
        check_world(ParallelConfig(strategy="single"), 2, 2)


@pytest.mark.parametrize("name", ["LOCAL_WORLD_SIZE", "LOCAL_SIZE"])  # torchrun and srun; deepspeed
def test_takes_what_launchers_set(name: str, environment: pytest.MonkeyPatch) -> None:
    for variable, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "1"), (name, "2")):
        environment.setenv(variable, value)
    world = join_world(DDP.timeout_s)
    leave_world()
    assert (world.local_rank, world.local_size) == (1, 2)


def test_collectives_are_counted_but_those_of_saves(environment: pytest.MonkeyPatch) -> None:
    assert collectives_begun() == 0
    world = join_world(ParallelConfig(strategy="single").timeout_s)
    try:
        strategy = build_strategy(ParallelConfig(strategy="single"), world)
        group = dist.new_group()
        before = collectives_begun()
        dist.all_reduce(torch.ones(1), group=strategy.save_group)
        assert collectives_begun() == before
        strategy.all_reduce_sum([1.0])
        dist.all_reduce(torch.ones(1), group=group)
        assert collectives_begun() == before + 2
    finally:
        leave_world()
    assert collectives_begun() == 0


def test_of_a_group_with_two_backends_those_count_that_can(environment: pytest.MonkeyPatch) -> None:
    """As with gloo and NCCL, torch asks one of them only; here it is one that does not count."""
    from torch.testing._internal.distributed import fake_pg  # noqa: F401 - makes the backend known

    dist.init_process_group("cpu:gloo,meta:fake", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(RuntimeError, match="does not yet support sequence numbers"):
            dist.group.WORLD._get_sequence_number_for_group()
        before = collectives_begun()
        dist.all_reduce(torch.ones(1))
        assert collectives_begun() == before + 1
    finally:
        leave_world()


def _tell() -> dict:
    world = join_world(DDP.timeout_s)
    strategy = build_strategy(DDP, world)
    rank = world.rank
    told = {
        "world": (rank, world.size, world.local_rank, world.local_size),
        "agree": strategy.all_reduce_sum([rank, 0.1, float("nan") if rank == 1 else 0.0]),
        "sum": strategy.all_reduce(torch.tensor([1.0, rank])).tolist(),
        "gather": strategy.gather_object({"rank": rank, "ids": ["a"] * rank}),
        "all_gather_object": strategy.all_gather_object(f"rank {rank}"),
    }
    strategy.barrier()
    leave_world()
    return told


@pytest.mark.slow
def test_ranks_tell_one_another() -> None:
    told = run_distributed(_tell, 3)
    for rank, values in enumerate(told):
        assert values["world"] == (rank, 3, rank, 3)
        total, exact, poisoned = values["agree"]
        assert total == 3
        assert exact == pytest.approx(0.3, rel=1e-15), "sums are float64"
        assert poisoned != poisoned, "one rank's NaN reaches all"
        assert values["sum"] == [3.0, 3.0]
        assert values["all_gather_object"] == ["rank 0", "rank 1", "rank 2"]
        expected = [{"rank": r, "ids": ["a"] * r} for r in range(3)] if rank == 0 else None
        assert values["gather"] == expected
    assert told[0]["agree"][:2] == told[1]["agree"][:2] == told[2]["agree"][:2]
