"""Which shard set an evaluation reads."""

from mres.config import Config
from mres.errors import UserError
from mres.shards.reader import ShardSet


def held_out(config: Config) -> ShardSet:
    """The shard set that `data.split` names.

    Raises:
        UserError: it is not set, or not a shard set.
    """
    folder = getattr(config.data, config.data.split)
    if folder is None:
        raise UserError(f"data.split={config.data.split} and data.{config.data.split} is not set; name a shard folder")
    return ShardSet(folder)
