"""Tiny models in many shapes, and inputs for them.

Shapes: B images, S side, K expressions an image, T tokens.
"""

import torch
from tiny_run import MODEL
from torch import Tensor

from mres.model.config import LossConfig
from mres.model.task import SegmentationTask
from mres.model.unires.config import UniresConfig
from mres.model.unires.unires import UniRES

# As CLIP has it: class token, pre-norm, quick GELU, one linear patch embedding; more layers in every part.
CLIP_LIKE = {
    "vision_class_token": True, "vision_pre_norm": True, "quick_gelu": True, "stem": "patch", "vision_depth": 3,
    "split_block": 2, "stage1_layers": 2, "stage2_layers": 2, "text_depth": 2,
}  # fmt: skip
VARIANTS = {
    "tiny": {},
    "clip-like": CLIP_LIKE,
    "shared filter, one stage each": {"filter_shared": True},
    "figure to the letter": {"filter_softmax": False, "filter_scale": False, "filter_norm": False},
    "stride 8, one logit a patch": {"mask_stride": 8},
    "stride 4": {"mask_stride": 4, "split_block": 1, "vision_depth": 3},
    "stride 1": {"mask_stride": 1},
}


def config_of(**changes) -> UniresConfig:
    return UniresConfig.model_validate({**MODEL, **changes})


def build(seed: int = 0, dtype: torch.dtype = torch.float32, **changes) -> UniRES:
    torch.manual_seed(seed)
    return UniRES(config_of(**changes)).to(dtype).eval()


def outline(config: UniresConfig) -> UniRES:
    """Without memory for its parameters."""
    return SegmentationTask(config, LossConfig()).outline()


def inputs(B: int = 2, K: int = 3, *, length: int = 14, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """image_BCSS and text_BKT: start 1022, words, end 1023, padding; texts of different lengths."""
    draw = torch.Generator().manual_seed(7)
    image_BCSS = torch.randn(B, 3, 32, 32, generator=draw, dtype=torch.float64).to(dtype)
    text_BKT = torch.zeros(B, K, length, dtype=torch.int32)
    for b in range(B):
        for k in range(K):
            words = 2 + (3 * b + 5 * k) % (length - 4)
            text_BKT[b, k, 1 : 1 + words] = torch.randint(1, 1022, (words,), generator=draw, dtype=torch.int32)
            text_BKT[b, k, 0], text_BKT[b, k, 1 + words] = 1022, 1023
    return image_BCSS, text_BKT
