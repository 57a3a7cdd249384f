"""Every process group waits `parallel.timeout_s`, whoever opened it: the run's, a device mesh, DeepSpeed."""

import datetime

import pytest
import torch
import torch.distributed as dist
import toy_training as toy

from mres.testing import run_distributed

TIMEOUT_S = 77  # of "timed"
KINDS = ("hsdp1-timed", "zero2-timed")
pytestmark = pytest.mark.slow


def open_groups() -> list[tuple[str, float]]:
    """What opened each group of this process, and how many seconds it waits."""
    from mres.supervise.world import join_world, leave_world

    world = join_world(toy.config_of("ddp-timed").timeout_s)
    found, seen = [], set()
    for kind in ("the run", *KINDS):
        kept = toy.build(kind, world) if kind in KINDS else None
        for group in set(dist.distributed_c10d._world.pg_map) - seen:
            seconds = group._get_backend(torch.device("cpu")).options._timeout / datetime.timedelta(seconds=1)
            found.append((kind, seconds))
            seen.add(group)
        del kept
    leave_world()
    return found


def test_all_groups_wait_as_long_as_the_run_says() -> None:
    for found in run_distributed(open_groups, 2):
        assert {kind for kind, _ in found} == {"the run", *KINDS}, "they open groups of their own"
        assert {seconds for _, seconds in found} == {TIMEOUT_S}
