"""How fast images and masks can be decoded, with nothing around it: the limit of any loader on this machine."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mres import rle
from mres.io.processes import spread
from mres.records import ImageRecord, Rle
from mres.shards.reader import ShardSet
from mres.stream import transforms
from mres.stream.batch import StreamShape
from mres.stream.config import DataConfig
from mres.stream.draws import ExpressionDraws
from mres.stream.image import decode_plain_jpeg, reduction_of, square_image
from mres.stream.rng import rng

_WARM_UP = 8  # images


@dataclass(frozen=True)
class Decodable:
    """An image in memory, where it lies in the square, and the masks of its K drawn expressions, each once."""

    record: ImageRecord
    geometry: transforms.Geometry
    masks: list[Rle]


def decodables(shards: ShardSet, config: DataConfig, shape: StreamShape) -> list[Decodable]:
    """All records of a set, without augmentation."""
    draws = ExpressionDraws(config, [shards.manifest.counts.targets_by_category])
    found = []
    for record in map(shards.read, range(len(shards))):
        pairs = draws.draw(record, rng(0, record.id))
        masks = list({target.id: target.mask for target, _ in pairs}.values())
        found.append(Decodable(record, transforms.fit(record.width, record.height, shape.side, config.resize), masks))
    return found


def image(item: Decodable, _: StreamShape) -> None:
    """The JPEG alone, at the scale that is needed."""
    decode_plain_jpeg(item.record, reduction_of(item.geometry))


def squared_image(item: Decodable, shape: StreamShape) -> None:
    """… and resized to the square."""
    square_image(item.record, item.geometry, torch.empty(3, shape.side, shape.side, dtype=torch.uint8), "bench")


def masks_on_grid(item: Decodable, shape: StreamShape) -> None:
    """mres' way: straight from run lengths to the shares of the grid's cells."""
    transforms.square_masks(item.masks, item.geometry, shape.side, shape.stride)


def masks_by_mres(item: Decodable, _: StreamShape) -> None:
    """Whole masks."""
    rle.decode_masks([mask.counts for mask in item.masks], item.record.height, item.record.width)


def masks_by_pycocotools(item: Decodable, _: StreamShape) -> np.ndarray:
    """Whole masks."""
    from pycocotools import mask as coco_mask

    encoded = [{"size": [mask.height, mask.width], "counts": mask.counts} for mask in item.masks]
    masks_HWK: np.ndarray = coco_mask.decode(encoded)
    return masks_HWK


def decode_rate(
    items: Sequence[Decodable],
    shape: StreamShape,
    steps: Sequence[Callable[[Decodable, StreamShape], object]],
    workers: int,
) -> float:
    """Images a second of processes that share out the images and do nothing but these steps."""

    def decode(worker: int) -> float:
        torch.set_num_threads(1)
        mine = items[worker::workers]
        for number, item in enumerate([*mine[:_WARM_UP], *mine]):
            if number == min(_WARM_UP, len(mine)):
                started = time.perf_counter()
            for step in steps:
                step(item, shape)
        return time.perf_counter() - started

    took = [outcome[1] for outcome in spread(decode, list(range(workers)), workers) if outcome]
    return len(items) / max(took)
