"""The two-stage vision-language decoder and the mask head.

Shapes: B images, K expressions an image, X = B·K, N patches, M memory tokens (words or groups), C decoder width,
h×w grid of logits, g×g grid of patches, r logits a patch side (h = g·r), S detail channels, E pixel channels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mres.model.attention import Attention
from mres.model.initial import Fill, start
from mres.model.unires.config import UniresConfig
from mres.model.unires.vision import detail_channels


class DecoderLayer(nn.Module):
    """Pre-norm self-attention among patches, cross-attention to the memory, FFN (the decoder layer of CRIS)."""

    def __init__(self, config: UniresConfig, *, self_attention: bool = True) -> None:
        super().__init__()
        width, hidden = config.decoder_width, int(config.decoder_width * config.decoder_mlp_ratio)
        self.cross_norm, self.ffn_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_norm = nn.LayerNorm(width) if self_attention else None
        self.self_attention = Attention(width, config.decoder_heads, config.dropout) if self_attention else None
        self.cross_attention = Attention(width, config.decoder_heads, config.dropout)
        self.ffn = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.drop = nn.Dropout(config.dropout)

    def forward(
        self, patches_XNC: Tensor, memory_XMC: Tensor, allowed_XM: Tensor | None, position_NC: Tensor
    ) -> Tensor:
        if self.self_attention is not None and self.self_norm is not None:
            normed = self.self_norm(patches_XNC)
            placed = normed + position_NC
            patches_XNC = patches_XNC + self.drop(self.self_attention(placed, placed, normed))
        query = self.cross_norm(patches_XNC) + position_NC
        patches_XNC = patches_XNC + self.drop(self.cross_attention(query, memory_XMC, memory_XMC, allowed_XM))
        return patches_XNC + self.drop(self.ffn(self.ffn_norm(patches_XNC)))


class SentenceGate(nn.Module):
    """Multiplies patches with the sentence, channel by channel: the text-visual product of CRIS's neck.

    Attention and FFN only add the text to a patch; comparing the two ("is this patch red?") is a product, which they learn
    slowly from scratch (measured: docs/decisions.md).
    """

    def __init__(self, config: UniresConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.text_width, config.decoder_width)

    def forward(self, patches_BKNC: Tensor, sentence_BKE: Tensor) -> Tensor:
        """Patches may have K = 1, the same for every expression; the result has the sentences' K."""
        return patches_BKNC * (1 + self.gate(sentence_BKE)[:, :, None])


class MaskHead(nn.Module):
    """Every patch of an expression predicts a kernel, which is multiplied with the image's pixel embedding under it.

    The pixel embedding is computed once an image, so an expression costs one small product a pixel instead of CRIS's
    stack of up-sampling convolutions; a bilinear coarse map keeps the patch borders from showing.
    """

    def __init__(self, config: UniresConfig) -> None:
        super().__init__()
        self.grid = config.image_size // config.patch_size
        self.ratio = config.patch_size // config.mask_stride
        self.pixel_width = config.pixel_width
        channels = detail_channels(config)
        self.from_detail = nn.Conv2d(channels, config.pixel_width, kernel_size=1)
        self.from_patches = nn.Linear(config.decoder_width, config.pixel_width)
        self.mix = nn.Conv2d(config.pixel_width, config.pixel_width, kernel_size=3, padding=1)
        self.norm = nn.GroupNorm(4 if config.pixel_width % 4 == 0 else 1, config.pixel_width)
        self.kernel_norm = nn.LayerNorm(config.decoder_width)
        self.kernel = nn.Linear(config.decoder_width, config.pixel_width + 1)
        start(self)

    def initialisers(self) -> dict[str, Fill]:
        return {"kernel.bias": _background}

    def pixels(self, detail_BShw: Tensor, patches_BNC: Tensor) -> Tensor:
        """The pixel embedding of an image, cut into patches: pixels_BNRE with R = r·r."""
        coarse_BEgg = _to_grid(self.from_patches(patches_BNC), self.grid)
        coarse_BEhw = F.interpolate(coarse_BEgg, scale_factor=self.ratio, mode="bilinear", align_corners=False)
        pixels_BEhw = F.gelu(self.norm(self.mix(self.from_detail(detail_BShw) + coarse_BEhw)))
        return (
            F.pixel_unshuffle(pixels_BEhw, self.ratio)
            .unflatten(1, (self.pixel_width, -1))
            .flatten(3)
            .permute(0, 3, 2, 1)
        )

    def forward(self, patches_XNC: Tensor, pixels_BNRE: Tensor) -> Tensor:
        """Returns logits_XHW (h×w)."""
        B, N, R, E = pixels_BNRE.shape
        X = patches_XNC.shape[0]
        kernels_XNE, coarse_XN1 = self.kernel(self.kernel_norm(patches_XNC)).split([self.pixel_width, 1], dim=-1)
        kernels_BNEK = kernels_XNE.view(B, X // B, N, E).permute(0, 2, 3, 1)
        fine_XRN = (pixels_BNRE @ kernels_BNEK * E**-0.5).permute(0, 3, 2, 1).reshape(X, R, N)
        fine_Xhw = F.pixel_shuffle(fine_XRN.view(X, R, self.grid, self.grid), self.ratio).squeeze(1)
        coarse_X1gg = _to_grid(coarse_XN1, self.grid)
        coarse_X1hw = F.interpolate(coarse_X1gg, scale_factor=self.ratio, mode="bilinear", align_corners=False)
        return fine_Xhw + coarse_X1hw.squeeze(1)


@torch.no_grad()
def _background(bias: Tensor, _: torch.Generator | None) -> None:
    """Most pixels are background: start from that prior instead of spending the first steps on it."""
    bias.zero_()
    bias[-1] = -2.0


def _to_grid(tokens_BNC: Tensor, grid: int) -> Tensor:
    return tokens_BNC.transpose(1, 2).unflatten(2, (grid, grid))


def sine_positions(grid: int, width: int) -> Tensor:
    """Fixed 2-D sine and cosine positions (Carion et al. 2020), (grid², width)."""
    quarter = width // 4
    scale = torch.exp(-math.log(100.0) * torch.arange(quarter) / max(1, quarter - 1)) * math.pi
    place = (torch.arange(grid) + 0.5) / grid * 2 - 1
    angles_gq = place[:, None] * scale
    wave_gh = torch.cat([angles_gq.sin(), angles_gq.cos()], dim=1)
    rows = wave_gh[:, None].expand(grid, grid, -1)
    columns = wave_gh[None].expand(grid, grid, -1)
    return torch.cat([columns, rows], dim=-1).reshape(grid * grid, width).float()
