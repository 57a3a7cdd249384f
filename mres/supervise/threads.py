"""How many CPU threads a process computes with."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from mres.supervise.world import World


def set_threads(threads: int | None, world: World) -> None:
    """`threads`, or this rank's share of the machine's cores."""
    torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) // world.local_size))
