"""Around a run's work: joining the ranks, and how all of them end when one dies, fails or hangs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mres.config import Config
from mres.parallel.world import World, join_world, leave_world, rank_and_size
from mres.train.heartbeat import FAILED, LOST, Beat, Heartbeat, NoHeartbeat, lagging, read_beats
from mres.train.recorder import enable_flight_recorder
from mres.train.watch import LOST_RANK_EXIT, Watch, in_one_line, is_of_communication


def guarded(config: Config, work: Callable[[World, Heartbeat], int]) -> int:
    """Joins the ranks, does the work and leaves; the exit code, which is `LOST_RANK_EXIT` where another rank was lost."""
    rank, size = rank_and_size()
    heartbeat = Heartbeat(config.run_dir, rank, size) if config.train.heartbeat else NoHeartbeat()
    heartbeat.start()
    enable_flight_recorder(config.run_dir)
    try:
        world = join_world(config.parallel)
    except BaseException as error:
        heartbeat.end(FAILED, in_one_line(error))
        raise
    watch = Watch(world, partial(heartbeat.end, LOST))
    try:
        watch.start()
        code = work(world, heartbeat)
    except BaseException as error:
        lost = watch.explain(error)
        if lost is None:
            heartbeat.end(FAILED, in_one_line(error))
            if is_of_communication(error):
                _name_laggards(config.run_dir)
            watch.leave()
            raise
        print(f"error: {lost}", file=sys.stderr, flush=True)
        heartbeat.end(LOST, str(lost))
        return LOST_RANK_EXIT
    else:
        heartbeat.end()
        watch.leave()
        return code
    finally:
        leave_world()


def _name_laggards(run_dir: Path) -> None:
    """A collective that fails although every rank lives has waited for one that hangs."""
    for beat in lagging(read_beats(run_dir)):
        print(f"error: the others waited for {described(beat)}", file=sys.stderr, flush=True)


def described(beat: Beat) -> str:
    """A rank and where it is, in words."""
    ago = time.time() - beat.since
    return f"rank {beat.rank} ({beat.host}, pid {beat.pid}): step {beat.step}, {beat.phase}, since {ago:.0f} s"
