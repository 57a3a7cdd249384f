"""Model FLOPs: what a step needs at least, and the share of the devices' peak that it gets (MFU).

The rule, as in the PaLM paper: matrix products, convolutions and attention of the forward pass count, backward takes
twice as much, so a step is three times its forward pass. What activation checkpointing computes again, what frozen
weights save and what the optimizer does are not in it.

The peak is what a device can compute at most, in FLOPs a second: NVIDIA's dense figures, on a CPU a measured matrix
product. "Dense": without the doubling by structured sparsity that data sheets print.

Shapes: B images, K expressions an image, S side of the square, T tokens.
"""

import re
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from mres.config import Config
from mres.model.task import SegmentationTask
from mres.supervise.world import World

_PASSES = 3  # forward, and backward twice
_TERA = 1e12

# TFLOPs: bfloat16, TF32, float32 without tensor cores. The first whose words are all in the device's name counts.
# A800 and H800 are A100 and H100 with slower links; they compute the same.
_PEAKS = (
    ("H100 PCIe", (756, 378, 51)),
    ("H800 PCIe", (756, 378, 51)),
    ("H100 NVL", (835, 418, 60)),
    ("H100", (989, 494, 67)),
    ("H800", (989, 494, 67)),
    ("H200", (989, 494, 67)),
    ("H20", (148, 74, 44)),
    ("A100", (312, 156, 19.5)),
    ("A800", (312, 156, 19.5)),
    ("A30", (165, 82, 10.3)),
    ("A40", (149.7, 74.8, 37.4)),
    ("A10", (125, 62.5, 31.2)),
    ("RTX A6000", (154.8, 77.4, 38.7)),
    ("RTX 6000 Ada", (364.2, 182.1, 91.1)),
    ("L40S", (362, 183, 91.6)),
    ("L40", (181, 90.5, 90.5)),
    ("L4", (121, 60, 30.3)),
    ("RTX 4090 D", (147, 73.5, 73.5)),
    ("RTX 4090", (165.2, 82.6, 82.6)),
    ("RTX 3090", (71, 35.6, 35.6)),
)

_CPU_SIDE = 1024
_CPU_BUDGET_S = 0.15


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


def peak_flops(device: torch.device, compute_dtype: str) -> float | None:
    """FLOPs a second of one device in `compute_dtype` ("float32", "bfloat16", "float64"); None where nobody knows."""
    if device.type == "cuda":
        tf32 = torch.backends.cuda.matmul.allow_tf32
        return published(torch.cuda.get_device_name(device), compute_dtype, tf32=tf32)
    return measured(getattr(torch, compute_dtype)) if device.type == "cpu" else None


def published(name: str, compute_dtype: str, *, tf32: bool) -> float | None:
    """The table's figure for a device's name, such as "NVIDIA A800-SXM4-80GB"; a slice of a GPU (MIG) and float64 have none."""
    if "MIG" in name or compute_dtype == "float64":
        return None
    column = 0 if compute_dtype == "bfloat16" else 1 if tf32 else 2
    for words, figures in _PEAKS:
        if all(re.search(rf"\b{word}\b", name) for word in words.split()):
            return figures[column] * _TERA
    return None


def measured(dtype: torch.dtype) -> float | None:
    """The best of some square products with this process's threads, in about a tenth of a second.

    None where one product alone would take longer: a CPU that only emulates the type.
    """
    small = 128
    if _seconds(small, dtype) * (_CPU_SIDE / small) ** 3 > 4 * _CPU_BUDGET_S:
        return None
    best, deadline = float("inf"), time.perf_counter() + _CPU_BUDGET_S
    while time.perf_counter() < deadline:
        best = min(best, _seconds(_CPU_SIDE, dtype))
    return 2 * _CPU_SIDE**3 / best


def _seconds(side: int, dtype: torch.dtype) -> float:
    """Of one product, after one that warms up."""
    left_NN, right_NN = torch.ones(side, side, dtype=dtype), torch.ones(side, side, dtype=dtype)
    out_NN = left_NN @ right_NN
    started = time.perf_counter()
    torch.mm(left_NN, right_NN, out=out_NN)
    return time.perf_counter() - started
