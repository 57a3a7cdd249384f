"""The image encoder: a timm ViT with group tokens at two levels (UniRES, Fig. 4; group tokens after GroupViT).

Shapes: B images, H×W pixels, N patches, D encoder width, P all tokens of a level, L low- and G high-level group tokens,
S channels of the stem's detail features, h×w the grid of logits (H / mask_stride).
"""

from functools import partial

import torch
from torch import Tensor, nn

from mres.model.initial import Fill, constant, normal, start
from mres.model.unires.config import UniresConfig

# Of LayerNorm; with the other one, weights compute something else.
_CLIP_EPS, _TIMM_EPS = 1e-5, 1e-6


def has_quick_gelu(config: UniresConfig) -> bool:
    """Whether the image encoder has the activation of OpenAI's CLIP."""
    return config.quick_gelu if config.vision_quick_gelu is None else config.vision_quick_gelu


class VisionEncoder(nn.Module):
    """Low-level group tokens enter with the patches and leave at `split_block`; high-level ones go from there to the end."""

    def __init__(self, config: UniresConfig) -> None:
        from timm.layers import LayerNorm, get_act_layer
        from timm.models.vision_transformer import VisionTransformer

        super().__init__()
        width = config.vision_width
        self.split_block = config.split_block
        self.vit = VisionTransformer(
            img_size=config.image_size,
            patch_size=config.patch_size,
            embed_dim=width,
            depth=config.vision_depth,
            num_heads=config.vision_heads,
            mlp_ratio=config.vision_mlp_ratio,
            class_token=config.vision_class_token,
            pre_norm=config.vision_pre_norm,
            norm_layer=partial(LayerNorm, eps=_CLIP_EPS if config.vision_pre_norm else _TIMM_EPS),
            act_layer=get_act_layer("quick_gelu" if has_quick_gelu(config) else "gelu"),
            num_classes=0,
            global_pool="token" if config.vision_class_token else "avg",
            fc_norm=False,
        )
        self.detail = DetailStem(config)
        self.stem = ConvStem(config) if config.stem == "conv" else None
        if self.stem is not None:
            self.vit.patch_embed = nn.Identity()
        self.low_group_LD = nn.Parameter(torch.empty(config.low_group_tokens, width))
        self.high_group_GD = nn.Parameter(torch.empty(config.high_group_tokens, width))
        start(self)

    def initialisers(self) -> dict[str, Fill]:
        """timm's for its ViT, and those of the group tokens."""
        # Not 0.02: group tokens start equal but for this noise, and must differ to attend to different regions.
        fills = {"low_group_LD": normal(0.5), "high_group_GD": normal(0.5), "vit.pos_embed": normal(0.02)}
        if self.vit.cls_token is not None:
            fills["vit.cls_token"] = normal(1e-6)
        for name, module in self.vit.named_modules():
            if isinstance(module, nn.Linear):
                # timm cuts it at ±2, which is a hundred standard deviations.
                fills |= {f"vit.{name}.weight": normal(0.02), f"vit.{name}.bias": constant(0.0)}
        return fills

    def forward(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns patches_BND, low-level groups_BLD, high-level groups_BGD and the stem's detail_BShw."""
        detail_BShw = self.detail(image_BCHW)
        tokens_BND = self.vit.patch_embed(image_BCHW) if self.stem is None else self.stem(detail_BShw)
        tokens_BPD = self.vit.norm_pre(self.vit._pos_embed(tokens_BND))
        blocks = list(self.vit.blocks)
        tokens_BPD, low_BLD = _run_with_groups(blocks[: self.split_block], tokens_BPD, self.low_group_LD)
        tokens_BPD, high_BGD = _run_with_groups(blocks[self.split_block :], tokens_BPD, self.high_group_GD)
        patches_BND = tokens_BPD[:, self.vit.num_prefix_tokens :]
        return self.vit.norm(patches_BND), self.vit.norm(low_BLD), self.vit.norm(high_BGD), detail_BShw


def _run_with_groups(blocks: list[nn.Module], tokens_BPD: Tensor, groups_GD: Tensor) -> tuple[Tensor, Tensor]:
    """Concatenates the group tokens along the token axis, runs the blocks, and splits them off again."""
    num_tokens = tokens_BPD.shape[1]
    groups_BGD = groups_GD.to(tokens_BPD.dtype).expand(tokens_BPD.shape[0], -1, -1)
    joined_BPD = torch.cat([tokens_BPD, groups_BGD], dim=1)
    for block in blocks:
        joined_BPD = block(joined_BPD)
    return joined_BPD[:, :num_tokens], joined_BPD[:, num_tokens:]


def detail_channels(config: UniresConfig) -> int:
    return max(16, config.pixel_width)


class DetailStem(nn.Module):
    """Features at the resolution of the logits, which the mask head needs for outlines that a ViT patch blurs."""

    def __init__(self, config: UniresConfig) -> None:
        super().__init__()
        stride, channels = config.mask_stride, detail_channels(config)
        self.down = nn.Conv2d(3, channels, kernel_size=stride + 2 - stride % 2, stride=stride, padding=1)
        self.norm = nn.GroupNorm(4, channels)
        self.mix = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.mix_norm = nn.GroupNorm(4, channels)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        side = image_BCHW.shape[-1] // self.down.stride[0]
        detail_BShw = nn.functional.gelu(self.norm(self.down(image_BCHW)))[..., :side, :side]
        return nn.functional.gelu(self.mix_norm(self.mix(detail_BShw)))


class ConvStem(nn.Module):
    """Strided convolutions from the detail features down to one token a patch.

    Trained from scratch it beats the single linear patch embedding (Xiao et al. 2021, "Early convolutions help
    transformers see better"); it cannot hold CLIP's patch weights, which is why `base` and `large` do not use it.
    """

    def __init__(self, config: UniresConfig) -> None:
        super().__init__()
        channels, stride = detail_channels(config), config.mask_stride
        layers: list[nn.Module] = []
        while stride < config.patch_size:
            stride *= 2
            out = min(config.vision_width, channels * 2)
            layers += [nn.Conv2d(channels, out, 3, stride=2, padding=1), nn.GroupNorm(4, out), nn.GELU()]
            channels = out
        self.down = nn.Sequential(*layers)
        self.project = nn.Conv2d(channels, config.vision_width, kernel_size=1)

    def forward(self, detail_BShw: Tensor) -> Tensor:
        return self.project(self.down(detail_BShw)).flatten(2).transpose(1, 2)
