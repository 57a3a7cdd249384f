"""How many CPU threads this process computes with."""

import os
import socket
from collections.abc import Iterable, Mapping

from mres.errors import UserError

OMP = "OMP_NUM_THREADS"


def set_threads(wanted: int | None) -> str:
    """Sets and describes it: `wanted` (`train.threads`), else OMP_NUM_THREADS, else this rank's share of its cores.

    Called by all ranks together.

    Raises:
        UserError: OMP_NUM_THREADS is no number of threads.
    """
    import torch
    import torch.distributed as dist

    asked = omp_threads(os.environ)
    mine = socket.gethostname(), frozenset(os.sched_getaffinity(0))
    ranks = [mine]
    if dist.is_initialized() and dist.get_world_size() > 1:
        ranks = [mine] * dist.get_world_size()
        dist.all_gather_object(ranks, mine)
    share = share_of_cores(mine[1], (cores for host, cores in ranks if host == mine[0]))
    torch.set_num_threads(wanted or asked or share)
    reason = "train.threads" if wanted else OMP if asked else "this rank's share of the cores"
    return f"{torch.get_num_threads()} thread(s) each ({reason})"


def omp_threads(environ: Mapping[str, str]) -> int | None:
    """What OMP_NUM_THREADS asks for; it may list a number for each level of nesting, of which there is one here.

    Raises:
        UserError: it is no number of threads.
    """
    text = environ.get(OMP, "").strip()
    if not text:
        return None
    first = text.split(",")[0].strip()
    if not first.isascii() or not first.isdigit() or not 0 < int(first[:9]) <= 1 << 16:
        raise UserError(
            f"the environment variable {OMP}={text!r} is not a number of threads from 1; unset it, or set train.threads"
        )
    return int(first)


def share_of_cores(mine: frozenset[int], of_ranks: Iterable[frozenset[int]]) -> int:
    """Each core is divided by the ranks that may run on it: none where each is bound to its own, as srun does it.

    Args:
        of_ranks: the cores of every rank of this machine, this one's among them.
    """
    ranks = list(of_ranks)
    return max(1, int(sum(1 / max(1, sum(core in cores for cores in ranks)) for core in mine) + 1e-6))
