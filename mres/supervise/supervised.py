"""Around a run's work: joining the ranks, and how all of them end when one dies, fails or hangs."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mres.supervise.flight_recorder import enable_flight_recorder
from mres.supervise.heartbeat import FAILED, LOST, Heartbeat, is_silent, lagging, read_beats
from mres.supervise.peer_monitor import LOST_RANK_EXIT, LostRank, PeerMonitor, in_one_line, is_of_communication
from mres.supervise.rank_env import read_rank_env
from mres.supervise.world import World, collectives_begun, join_world, leave_world

# Heartbeats are of different moments: who seems to be behind and has just moved on is not.
_IDLE_S = 5.0


def supervised(
    run_dir: Path, timeout_s: int, work: Callable[[World, Heartbeat], int], *, with_heartbeat: bool = True
) -> int:
    """Joins the ranks, does the work and leaves; the exit code, which is `LOST_RANK_EXIT` where another rank was lost."""
    rank_env = read_rank_env()
    heartbeat = Heartbeat(run_dir, rank_env.rank, rank_env.size, collectives_begun)
    if with_heartbeat:
        heartbeat.start()
    enable_flight_recorder(run_dir)
    try:
        world = join_world(timeout_s)
    except BaseException as error:
        heartbeat.end(FAILED, in_one_line(error))
        raise
    if world.network:
        print(world.network, flush=True)
    monitor = PeerMonitor(world, partial(heartbeat.end, LOST))
    try:
        monitor.start()
        code = work(world, heartbeat)
    except BaseException as error:
        lost = monitor.verdict(error)
        if lost is None and is_of_communication(error) and (lost := _laggard(run_dir, rank_env.rank)):
            monitor.blame(lost)
        if lost is None:
            why = f"({socket.gethostname()}, pid {os.getpid()}) failed: {in_one_line(error)}"
            monitor.blame(LostRank(rank_env.rank, why))
            heartbeat.end(FAILED, in_one_line(error))
            monitor.leave()
            raise
        print(f"error: {lost}", file=sys.stderr, flush=True)
        heartbeat.end(LOST, str(lost))
        return LOST_RANK_EXIT
    else:
        heartbeat.end()
        monitor.leave()
        return code
    finally:
        leave_world()


def _laggard(run_dir: Path, own_rank: int) -> LostRank | None:
    """A collective that fails although every rank lives has waited for one that is stopped, or furthest behind."""
    beats = read_beats(run_dir)
    newest = max((beat.written for beat in beats.values()), default=0.0)
    waited_for = [beat for beat in lagging(beats) if beat.idle_s(newest) > _IDLE_S]
    for beat in [*(beat for beat in beats.values() if is_silent(beat, newest)), *waited_for]:
        if beat.rank != own_rank:
            why = f"({beat.host}, pid {beat.pid}) hangs: the others waited for it; {beat.status(newest)}"
            return LostRank(beat.rank, why)
    return None
