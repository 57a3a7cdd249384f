"""A checkpoint onto the disk: checked, written aside, hashed by who wrote it, committed by rename, older ones removed.

Everything here is done by all ranks together, over a process group of their own, in whichever thread.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mres.checkpoint.collective_try import CollectiveTry
from mres.checkpoint.config import CheckpointConfig
from mres.checkpoint.retention import Best, surplus
from mres.checkpoint.store import aside, committed, step_folder, step_of
from mres.dcp.local_shards import LocalShard, local_tensors
from mres.formats.folder import DCP_METADATA, CheckpointError, FileFacts, read_manifest, seal
from mres.io.files import free_bytes, fsync, make_folder
from mres.io.folders import commit_folder, settle

if TYPE_CHECKING:
    from mres.parallel.strategy import Strategy

# What files take beside their tensors: a share of them, and bytes a tensor and a checkpoint.
_MARGIN, _BYTES_A_TENSOR, _BYTES_BESIDE = 0.02, 2048, 1 << 16


class NotFiniteError(CheckpointError):
    """The state to save is not finite: going on cannot mend that."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be written: this rank's `local_shards` of the state, and what stands beside the tensors."""

    step: int
    shards: dict[str, LocalShard]
    state: dict[str, Any]
    config_yaml: str


class Writer:
    """Writes a run's checkpoints below `root`.

    Attributes:
        verified: steps whose checkpoints were read back from the disk and found whole, on resuming or after writing.
    """

    def __init__(self, root: Path, strategy: Strategy, config: CheckpointConfig) -> None:
        self._root, self._strategy, self._config = root, strategy, config
        self.verified: set[int] = set()

    def write(self, job: Job) -> Path:
        """Writes and commits a checkpoint; called by all ranks together, which succeed or fail together.

        Checkpoints of later steps, which a run has that went back, are superseded.

        Raises:
            NotFiniteError: a weight, moment or average is not finite; nothing was written.
            CheckpointError: nothing was committed (disk full, no permission); older checkpoints stand.
        """
        final = step_folder(self._root, job.step)
        part = aside(final, "incomplete")
        ranks = CollectiveTry(self._strategy.save_group, final)
        self._check_finite(job, ranks, final)
        try:
            ranks.on_main(lambda: _make_room(self._root))
            self._check_room(job, ranks, final)
            ranks.on_main(part.mkdir)
            written = ranks.each(lambda: self._write_tensors(job, part))
            facts = {name: facts for of_rank in written for name, facts in of_rank.items()}
            ranks.on_main(lambda: _commit(part, final, job, facts))
        except CheckpointError:
            if ranks.is_main:
                shutil.rmtree(part, ignore_errors=True)  # a full disk needs the room
            raise
        self.verified = {step for step in self.verified if step < job.step}
        self._prune(final, ranks)
        return final

    def _check_finite(self, job: Job, ranks: CollectiveTry, final: Path) -> None:
        """A checkpoint that nobody can go on from must not push out one that is good; buffers may hold any value."""
        buffers = {f"model.{name}" for name in job.state.get("buffers", ())}
        mine = ranks.each(
            lambda: {name for name, t in local_tensors(job.shards) if name not in buffers and not _is_finite(t)}
        )
        broken = sorted(set().union(*mine))
        if broken:
            raise NotFiniteError(
                f"checkpoint {final} was not written: {len(broken)} of its tensors are not finite: "
                f"{', '.join(broken[:3])}{' …' if len(broken) > 3 else ''}; lower optim.lr or look at the data of the "
                "last steps"
            )

    def _check_room(self, job: Job, ranks: CollectiveTry, final: Path) -> None:
        tensors = [tensor for _, tensor in local_tensors(job.shards)]
        bytes_of_rank = sum(tensor.nbytes for tensor in tensors) * (1 + _MARGIN) + _BYTES_A_TENSOR * len(tensors)
        found = ranks.each(lambda: (bytes_of_rank, free_bytes(self._root)))
        needed = sum(of_rank for of_rank, _ in found) + _BYTES_BESIDE
        free = min(free for _, free in found)
        if needed > free:
            raise CheckpointError(
                f"checkpoint {final} was not written: No space left on device: it takes {needed / 1e6:,.1f} MB and "
                f"{free / 1e6:,.1f} MB are free; make room, lower checkpoint.keep, or set run.dir"
            )

    def _write_tensors(self, job: Job, part: Path) -> dict[str, FileFacts]:
        """This rank's files, brought to the disk by DCP; they are hashed where they were written, by all at once."""
        self._strategy.write_staged(job.shards, part)
        return {path.name: FileFacts.of(path) for path in self._own_files(part)}

    def _own_files(self, folder: Path) -> list[Path]:
        rank = self._strategy.world.rank
        return [*folder.glob(f"__{rank}_*.distcp"), *([folder / DCP_METADATA] if rank == 0 else [])]

    def _prune(self, newest: Path, ranks: CollectiveTry) -> None:
        """Removes what need not stay; never the last checkpoint that was read back whole."""
        going, staying = ranks.on_main(self._going_and_staying)
        self.verified &= staying | going
        if going and not self.verified & staying:
            self._read_back(newest, ranks)
        if ranks.is_main:
            _remove((step_folder(self._root, step) for step in sorted(going)), self._root)

    def _going_and_staying(self) -> tuple[set[int], set[int]]:
        steps = {step_of(folder) for folder in committed(self._root)}
        best = Best.read(self._root) if self._config.keep_best else None
        protected = {best.step} if best else set()
        going = surplus(steps, keep=self._config.keep, keep_every=self._config.keep_every, protected=protected)
        return going, steps - going

    def _read_back(self, folder: Path, ranks: CollectiveTry) -> None:
        """Each rank reads the files that it wrote, from the disk.

        Raises:
            CheckpointError: they are not what was written; all older checkpoints stay.
        """
        damaged = sorted(path for of_rank in ranks.each(lambda: self._damaged(folder)) for path in of_rank)
        if damaged:
            raise CheckpointError(
                f"the disk does not give back what was written: {damaged[0]} is damaged; check the disk, or set run.dir"
            )
        self.verified.add(step_of(folder))

    def _damaged(self, folder: Path) -> list[Path]:
        _, facts = read_manifest(folder)
        rank = self._strategy.world.rank
        own = [n for n in facts if n.startswith(f"__{rank}_") or (rank == 0 and not n.startswith("__"))]
        return [folder / name for name in own if FileFacts.of(folder / name, from_disk=True) != facts[name]]


def _is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    lowest, highest = torch.aminmax(tensor)  # NaN where there is one; makes no tensor of its size
    return bool(torch.isfinite(lowest) and torch.isfinite(highest))


def _make_room(root: Path) -> None:
    """What killed saves left goes first: it may be all that the disk lacks. What they were about to replace comes back."""
    make_folder(root)
    for leftover in root.glob("step-*.incomplete"):
        shutil.rmtree(leftover, ignore_errors=True)
    for replaced in root.glob("step-*.replaced"):
        settle(replaced.with_suffix(""))


def _commit(part: Path, final: Path, job: Job, written: Mapping[str, FileFacts]) -> None:
    seal(part, job.step, job.state, job.config_yaml, written)
    supersede(final.parent, job.step)
    commit_folder(part, final)


def supersede(root: Path, step: int) -> list[Path]:
    """Renames the checkpoints of later steps, so that nothing goes on from them any more; their names before that."""
    later = [folder for folder in committed(root) if step_of(folder) > step]
    for folder in later:
        superseded = aside(folder, "superseded")
        shutil.rmtree(superseded, ignore_errors=True)
        folder.rename(superseded)
    if later:
        fsync(root)
    return later


def _remove(folders: Iterable[Path], root: Path) -> None:
    """What cannot be removed is tried again at the next save."""
    for folder in folders:
        going = aside(folder, "incomplete")
        shutil.rmtree(going, ignore_errors=True)
        with suppress(OSError):  # renamed first: a folder that is half removed must not look like a checkpoint
            folder.rename(going)
    for leftover in root.glob("step-*.incomplete"):
        shutil.rmtree(leftover, ignore_errors=True)
