"""CRIS's cross-modal neck: a feature pyramid that the sentence is multiplied into.

Shapes: B images, K expressions an image, X = B·K, J joint width, C width, h×w the map at 1/16 of the image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mres.model.cris.config import CrisConfig


class Neck(nn.Module):
    """C5 times the sentence, then down the pyramid to one map at 1/16.

    What only depends on the image is computed once for all of its expressions.
    """

    def __init__(self, config: CrisConfig) -> None:
        super().__init__()
        width, joint = config.text_width, config.joint_width
        self.sentence = nn.Sequential(nn.Linear(joint, 2 * width, bias=False), nn.BatchNorm1d(2 * width), nn.ReLU())
        self.from_c5 = convolution(joint, 2 * width, 1)
        self.from_c4 = convolution(16 * config.vision_width, width, 3)
        self.from_c3 = convolution(8 * config.vision_width, width // 2, 3)
        self.fused = nn.Sequential(nn.BatchNorm2d(2 * width), nn.ReLU())
        self.join4 = convolution(3 * width, width, 1)
        self.join3 = convolution(width // 2 + width, width, 1)
        self.to5, self.to4, self.to3 = (convolution(c, width, 3) for c in (2 * width, width, width))
        self.join = convolution(3 * width, width, 1)
        self.place = nn.Sequential(convolution(width + 2, width, 3), convolution(width, width, 3))

    def forward(self, c3: Tensor, c4: Tensor, c5: Tensor, sentence_BKJ: Tensor) -> Tensor:
        """Returns map_XChw."""
        K = sentence_BKJ.shape[1]
        gate_XC11 = self.sentence(sentence_BKJ.flatten(0, 1))[..., None, None]
        f5 = self.fused(_for_each(self.from_c5(c5), K) * gate_XC11)
        f4 = self.join4(torch.cat([_for_each(self.from_c4(c4), K), _upsampled(f5)], dim=1))
        f3 = self.join3(torch.cat([_for_each(F.avg_pool2d(self.from_c3(c3), 2), K), f4], dim=1))
        joined_XChw = self.join(torch.cat([self.to3(f3), self.to4(f4), _upsampled(self.to5(f5))], dim=1))
        return self.place(torch.cat([joined_XChw, _coordinates(joined_XChw)], dim=1))


def convolution(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU; as large as what goes in."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def _for_each(map_BChw: Tensor, num_expressions: int) -> Tensor:
    """An image's map for every expression of it: map_XChw."""
    return map_BChw[:, None].expand(-1, num_expressions, -1, -1, -1).flatten(0, 1)


def _upsampled(map_XChw: Tensor) -> Tensor:
    return F.interpolate(map_XChw, scale_factor=2, mode="bilinear", align_corners=False)


def _coordinates(map_XChw: Tensor) -> Tensor:
    """Column and row of each place, -1 … 1 (CoordConv, Liu et al. 2018)."""
    X, _, h, w = map_XChw.shape
    columns, rows = (torch.linspace(-1, 1, n, device=map_XChw.device, dtype=map_XChw.dtype) for n in (w, h))
    return torch.stack([columns.expand(h, w), rows[:, None].expand(h, w)]).expand(X, -1, -1, -1)
