"""The sets that a config names: opened, together as what a run trains on."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mres.errors import UserError
from mres.io.local import check_local
from mres.records import GRANULARITIES
from mres.shards.reader import BLOCK_RECORDS, ShardSet
from mres.shards.remote import RemoteOptions, default_cache_dir
from mres.stream.config import DataConfig
from mres.stream.epoch import SetShape
from mres.stream.order import Order


def open_set(location: str, config: DataConfig) -> ShardSet:
    """The set in a folder or at a URL, read as `data.cache_dir`, `data.remote_timeout_s` … say.

    Raises:
        UserError: there is none, it is damaged, the store does not answer, or `data.cache_dir` is a URL.
    """
    check_local(config.cache_dir or "")
    return ShardSet(
        location,
        RemoteOptions(
            cache_dir=Path(config.cache_dir) if config.cache_dir else default_cache_dir(),
            cache_limit_bytes=int(config.cache_limit_gb * 1e9),
            timeout_s=config.remote_timeout_s,
            retries=config.remote_retries,
        ),
    )


class TrainingSets(Sequence[ShardSet]):
    """The sets of `data.train`, at least one."""

    def __init__(self, sets: Sequence[ShardSet]) -> None:
        assert sets, "refused before the start"
        self._sets = list(sets)

    @classmethod
    def open(cls, config: DataConfig) -> "TrainingSets":
        """Raises: UserError: `data.train` is not set, or see `open_set`."""
        if not config.train_sets:
            raise UserError("data.train is not set; name a shard folder (python tools/shard.py build … makes one)")
        return cls([open_set(chosen.path, config) for chosen in config.train_sets])

    def __getitem__(self, number):  # type: ignore[no-untyped-def]
        return self._sets[number]

    def __len__(self) -> int:
        return len(self._sets)

    @property
    def fingerprint(self) -> str:
        """Names the data: of one set its manifest's hash, of several a hash of theirs in their order."""
        prints = [shards.fingerprint for shards in self._sets]
        return prints[0] if len(prints) == 1 else hashlib.sha256("\n".join(prints).encode()).hexdigest()

    @property
    def where(self) -> str:
        """What messages call them."""
        return " + ".join(shards.location for shards in self._sets)

    @property
    def num_images(self) -> int:
        return sum(map(len, self._sets))

    @property
    def num_expressions(self) -> int:
        return sum(sum(shards.manifest.counts.expressions.values()) for shards in self._sets)

    @property
    def expressions_by_kind(self) -> dict[str, Counter[str]]:
        """How many expressions there are of each granularity and kind."""
        kinds: dict[str, Counter[str]] = {granularity: Counter() for granularity in GRANULARITIES}
        for shards in self._sets:
            for granularity, numbers in shards.manifest.counts.expressions_by_kind.items():
                kinds[granularity].update(numbers)
        return kinds

    def order(self, config: DataConfig, seed: int) -> Order:
        """The order in which a run takes their images."""
        shapes = [SetShape(len(shards), shards.block_starts) for shards in self._sets]
        return Order.from_config(config, shapes, seed)

    def check_cache(self, config: DataConfig, slots: int) -> None:
        """Refuses a cache that could not hold the blocks which a machine's `slots` of the batch read at once.

        Raises:
            UserError: naming the limit that would do.
        """
        window = len(self._sets[0]) if config.shuffle == "uniform" else config.shuffle_window
        for shards in self._sets:
            in_use = min(len(shards.block_starts), slots * (window // BLOCK_RECORDS + 2))
            largest = shards.largest_block()
            for storage in shards.storages:
                storage.check_capacity(largest, in_use)

    def shortage(self, k: int) -> str | None:
        """A warning where records have fewer than `k` expressions; their free places are left empty and weigh nothing.

        Raises:
            UserError: no record has so many.
        """
        short, most, fewest = 0, 0, (k, "")
        for shards in self._sets:
            counts_N = shards.num_expressions_N
            short += int((counts_N < k).sum())
            most = max(most, int(counts_N.max()))
            least = int(counts_N.argmin())
            if counts_N[least] < fewest[0]:
                fewest = int(counts_N[least]), shards.name(least)
        if not short:
            return None
        message = (
            f"data.expressions_per_image={k} is more than {short} of {self.num_images} records have (fewest: "
            f"{fewest[0]}, {fewest[1]}); "
        )
        if most < k:
            raise UserError(
                message
                + f"at most {most} can be drawn from {self.where}; set data.expressions_per_image={most} or less"
            )
        return message + "their free places stay empty and weigh nothing"
