"""The nodes of a job: which do not answer any more, and which have failed so often that the run keeps away from them."""

from __future__ import annotations

import re
import socket
import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from mres.cluster import jobs
from mres.cluster.slurm_nodes import Node
from mres.io.files import write_atomically
from mres.supervise.heartbeat import Beat, file_system_time, is_silent, read_beats

EXCLUDED = "excluded-nodes.txt"
_HEAD = "# Nodes that failed twice in this run: its jobs avoid them. Remove a line to let them have the node again.\n"
_MOST_FAILURES = 2
_CONNECT_S, _AGAIN_S, _TRIES = 2.0, 2.0, 2


class Watch:
    """The nodes of this job, and the heartbeats that its ranks write from now on.

    A node is lost where its slurmd, which has answered at the start, cannot be reached any more. Only where there is reason
    to is it asked: ranks of it are silent, or a task has ended badly.
    """

    def __init__(self, run_dir: Path, nodes: Sequence[Node], lost_before: Collection[str] = ()) -> None:
        """`lost_before`: those that may be lost still, and need not have answered at the start."""
        self._run_dir, self._since = run_dir, file_system_time(run_dir)
        never = set(_unreachable(nodes)) - set(lost_before)
        self._nodes = [node for node in nodes if node.name not in never]

    def beats(self) -> list[Beat]:
        """The ranks' last words, those of an earlier start left out."""
        return [beat for beat in read_beats(self._run_dir).values() if beat.written >= self._since]

    def lost(self, *, has_failed: bool) -> tuple[str, ...]:
        """The names of nodes that are lost; `has_failed`: a task has ended badly, on whatever node."""
        suspects = self._nodes if has_failed else self._silent()
        for again in range(_TRIES):
            if again and suspects:
                time.sleep(_AGAIN_S)
            suspects = [node for node in suspects if node.name in set(_unreachable(suspects))]
        return tuple(node.name for node in suspects)

    def _silent(self) -> list[Node]:
        beats = self.beats()
        if not beats:
            return []
        now = file_system_time(self._run_dir)
        hosts = {beat.host.partition(".")[0] for beat in beats if is_silent(beat, now)}
        return [node for node in self._nodes if hosts & {node.name, node.host.partition(".")[0]}]


def _unreachable(nodes: Sequence[Node]) -> list[str]:
    if not nodes:
        return []
    with ThreadPoolExecutor(min(64, len(nodes))) as pool:
        reached = pool.map(is_reached, nodes)
    return [node.name for node, answers in zip(nodes, reached, strict=True) if not answers]


def is_reached(node: Node) -> bool:
    """Whether its slurmd takes a connection."""
    with suppress(OSError), socket.create_connection((node.address, node.port), timeout=_CONNECT_S):
        return True
    return False


def excluded(run_dir: Path) -> tuple[str, ...]:
    """The nodes that the run's jobs avoid, as the file in its folder lists them."""
    with suppress(OSError, UnicodeDecodeError):
        lines = (run_dir / EXCLUDED).read_text(encoding="utf-8").splitlines()
        words = (line.partition("#")[0].strip() for line in lines)
        return tuple(dict.fromkeys(word for word in words if re.fullmatch(r"[\w.-]+", word)))
    return ()


def exclude(run_dir: Path, failed: Iterable[str], reason: str) -> tuple[str, ...]:
    """Adds those of the nodes that have just failed which had failed before; returns what is new.

    Raises:
        OSError: the run's folder does not take it.
    """
    before = Counter(node for event in jobs.read(run_dir) for node in event.failed_nodes)
    known = excluded(run_dir)
    new = tuple(name for name in failed if before[name] + 1 >= _MOST_FAILURES and name not in known)
    if new:
        path = run_dir / EXCLUDED
        text = path.read_text(encoding="utf-8") if path.exists() else _HEAD
        lines = "".join(f"{name}  # the last time: {' '.join(reason.split())}\n" for name in new)
        write_atomically(path, (text + lines).encode())
    return new
