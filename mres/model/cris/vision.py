"""CRIS's image encoder: CLIP's ResNet, its attention pool kept as a map.

Shapes: B images, D channels of the last stage, J joint width, h×w the map of the last stage (1/32), N = h·w,
p side of the grid of learned positions. C3, C4 and C5 are maps at 1/8, 1/16 and 1/32.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from mres.model.cris.config import CrisConfig
from mres.model.initial import Fill, constant, normal

_HEAD_WIDTH = 64  # of CLIP's attention pool


class ImageEncoder(nn.Module):
    """open_clip's ModifiedResNet under its own names, so that its weights fit, and a shortcut beside its attention pool."""

    def __init__(self, config: CrisConfig) -> None:
        from open_clip.modified_resnet import ModifiedResNet

        super().__init__()
        channels = 32 * config.vision_width
        self.tower = ModifiedResNet(
            layers=list(config.vision_layers),
            output_dim=config.joint_width,
            heads=max(1, channels // _HEAD_WIDTH),
            image_size=32 * config.vision_positions,
            width=config.vision_width,
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(channels, config.joint_width, 1, bias=False), nn.BatchNorm2d(config.joint_width)
        )

    def initialisers(self) -> dict[str, Fill]:
        """open_clip's (ModifiedResNet.init_parameters): every bottleneck starts as the identity."""
        spread = normal(self.tower.attnpool.c_proj.in_features**-0.5)
        fills = {f"tower.attnpool.{name}_proj.weight": spread for name in "qkvc"}
        fills["tower.attnpool.positional_embedding"] = spread
        last = (name for name, _ in self.tower.named_parameters() if name.endswith(".bn3.weight"))
        return fills | {f"tower.{name}": constant(0.0) for name in last}

    def forward(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns C3, C4 and, in CLIP's joint space, C5."""
        tower = self.tower
        c3 = tower.layer2(tower.layer1(tower.stem(image_BCHW)))
        c4 = tower.layer3(c3)
        c5_BDhw = tower.layer4(c4)
        return c3, c4, F.relu(self._pooled(c5_BDhw) + self.shortcut(c5_BDhw))

    def _pooled(self, map_BDhw: Tensor) -> Tensor:
        """CLIP's attention pool from every place, not from their mean alone: map_BJhw."""
        pool, (h, w) = self.tower.attnpool, map_BDhw.shape[-2:]
        x_BND = map_BDhw.flatten(2).transpose(1, 2) + _positions(pool.positional_embedding, h, w).to(map_BDhw.dtype)
        q, k, v = (
            project(x_BND).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)
            for project in (pool.q_proj, pool.k_proj, pool.v_proj)
        )
        mixed_BND = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        pooled_BJN: Tensor = pool.c_proj(mixed_BND).transpose(1, 2)
        return pooled_BJN.unflatten(-1, (h, w))


def _positions(learned_PD: Tensor, h: int, w: int) -> Tensor:
    """The learned positions at each of h×w places, (N, D); the first is of the mean, which is no place."""
    p = int((learned_PD.shape[0] - 1) ** 0.5)
    grid_1Dpp = learned_PD[1:].float().T.reshape(1, -1, p, p)
    return F.interpolate(grid_1Dpp, size=(h, w), mode="bicubic", align_corners=False).flatten(2)[0].T
