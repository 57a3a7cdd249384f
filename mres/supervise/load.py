"""What a run will ask of each machine, from its config; without a config, what can be said of any run."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from mres.config import Config
from mres.stream.config import local_batch_size


@dataclass(frozen=True, slots=True)
class Load:
    """Per machine: `ranks`, each with `workers` loader processes and `threads`; bytes of what travels and is kept."""

    ranks: int
    workers: int
    prefetch: int
    threads: int | None
    batch_bytes: int
    checkpoint_bytes: int = 0

    @property
    def shared_memory_bytes(self) -> int:
        """Batches that wait in /dev/shm at once: those prepared ahead, and the one in use."""
        return self.ranks * (self.workers * self.prefetch + 1) * self.batch_bytes if self.workers else 0

    @property
    def open_files(self) -> int:
        """Of one rank: every tensor that waits in shared memory is an open file; connections and shards come on top."""
        return 4 * (self.workers * self.prefetch + 1) + 2 * self.ranks + 300


def load_of(config: Config, ranks: int) -> Load:
    """Raises: UserError: the batch does not divide by the ranks."""
    from mres.model.task import SegmentationTask

    task = SegmentationTask(config.model, config.loss)
    num_parameters = sum(parameter.numel() for parameter in task.outline().parameters())
    copies = 3 if config.optim.ema_decay is None else 4  # weights and two moments, the moving average
    kept = copies * 4 * num_parameters * (config.checkpoint.keep + 1)
    return replace(traffic_of(config, ranks), checkpoint_bytes=kept)


def traffic_of(config: Config, ranks: int) -> Load:
    """The load without checkpoints: in no time, since no model is drawn up.

    Raises:
        UserError: the batch does not divide by the ranks.
    """
    from mres.model.task import SegmentationTask
    from mres.stream.batch import empty_batch

    data, shape = config.data, SegmentationTask(config.model, config.loss).shape
    one = empty_batch(1, data.expressions_per_image, shape, shared=False)
    tensors = (one.image_BCSS, one.mask_BKhh, one.text_BKT, one.valid_BK)
    world_size = max(ranks, int(os.environ.get("WORLD_SIZE", "1")))
    return Load(
        ranks=ranks,
        workers=data.workers,
        prefetch=data.prefetch,
        threads=config.train.threads,
        batch_bytes=local_batch_size(data.images_per_batch, world_size) * sum(t.nbytes for t in tensors),
    )
