"""Which shard set an evaluation reads."""

from mres.config import Config
from mres.errors import UserError
from mres.shards.reader import ShardSet
from mres.stream.sets import open_set


def held_out(config: Config) -> ShardSet:
    """The shard set that `data.split` names.

    Raises:
        UserError: it is not set, or not a shard set.
    """
    folder = getattr(config.data, config.data.split)
    if folder is None:
        raise UserError(f"data.split={config.data.split} and data.{config.data.split} is not set; name a shard folder")
    if not isinstance(folder, str):
        raise UserError(
            f"data.split={config.data.split} names {len(folder)} sets, and one is evaluated at a time; name it in data.val"
        )
    return open_set(folder, config.data)
