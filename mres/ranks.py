"""Whether a config can run on so many ranks: asked before a job is submitted, and again before torch loads."""

from mres.config import Config
from mres.errors import UserError
from mres.parallel.mesh import check_world
from mres.parallel.zero.ds_config import check_ds_config
from mres.shards.driver import longest_wait_s
from mres.shards.storage import is_remote
from mres.stream.config import local_batch_size


def check_ranks(config: Config, size: int, local_size: int | None) -> None:
    """Refuses what could not start, or would end for no reason, on `size` ranks of which a machine has `local_size`.

    Raises:
        UserError: names the keys that do not fit, or do not fit each other.
    """
    check_world(config.parallel, size, local_size or size)
    check_batch(config, size)
    check_ds_config(
        config.parallel,
        config.optim.model_dump(),
        images_per_batch=config.data.images_per_batch,
        accumulate=config.train.accumulate,
        world_size=size,
    )
    check_patience(config, size)


def check_batch(config: Config, size: int) -> None:
    """Refuses a global batch that ranks and micro-batches cannot split evenly."""
    share = local_batch_size(config.data.images_per_batch, size)
    if share % config.train.accumulate:
        raise UserError(
            f"train.accumulate={config.train.accumulate} does not divide a rank's {share} images "
            f"(data.images_per_batch={config.data.images_per_batch} over {size} ranks)"
        )


def check_patience(config: Config, size: int) -> None:
    """Refuses a rank that may wait for its store for longer than the others wait for that rank."""
    data, timeout_s = config.data, config.parallel.timeout_s
    held_out = [data.val] if data.val and config.evaluate.every else []
    if size == 1 or not any(is_remote(path) for path in (*(chosen.path for chosen in data.train_sets), *held_out)):
        return
    wait_s = longest_wait_s(data.remote_timeout_s, data.remote_retries)
    if wait_s >= timeout_s:
        raise UserError(
            f"parallel.timeout_s={timeout_s} is not above the {wait_s:.0f} s that a rank may wait for one read of a remote "
            f"store (data.remote_timeout_s={data.remote_timeout_s:g} a try, data.remote_retries={data.remote_retries}): the "
            f"others would take it for hung; set parallel.timeout_s above {wait_s:.0f}, or lower one of the other two"
        )
