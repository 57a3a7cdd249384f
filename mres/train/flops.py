"""Model FLOPs: what a step needs at least, and the share of the devices' peak that it gets (MFU).

The rule, as in the PaLM paper: matrix products, convolutions and attention of the forward pass count, backward takes
twice as much, so a step is three times its forward pass. What activation checkpointing computes again, what frozen
weights save and what the optimizer does are not in it.

Shapes: B images, K expressions an image, S side of the square, T tokens.
"""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from mres.config import Config
from mres.model.task import SegmentationTask
from mres.supervise.world import World
from mres.train.peak import peak_flops

_PASSES = 3  # forward, and backward twice


def flops_per_image(task: SegmentationTask, num_expressions: int) -> int:
    """Of forward and backward of one image with all its expressions; counted on the meta device, in no memory."""
    model = task.outline().eval().to("meta")  # one image is too few for the statistics of a BatchNorm
    shape = task.shape
    image_BCSS = torch.empty(1, 3, shape.side, shape.side, dtype=torch.uint8, device="meta")
    text_BKT = torch.empty(1, num_expressions, shape.text_length, dtype=torch.int32, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        task.logits(model, image_BCSS, text_BKT)
    return _PASSES * counter.get_total_flops()


def utilisation(config: Config, task: SegmentationTask, world: World) -> Callable[[float], float] | None:
    """A function from images a second, over all ranks, to the share of the peak of all devices; None: unknown peak."""
    peak = peak_flops(world.device, config.parallel.compute_dtype)
    if peak is None:
        return None
    flops = flops_per_image(task, config.data.expressions_per_image)
    return lambda images_per_s: images_per_s * flops / (peak * world.size)
