"""CRIS's vision-language decoder, and the projector that makes a mask of what it returns.

Shapes: X expressions of all images, N places of the map, T words, C width, J joint width, h×w the map at 1/16 of the image,
H×W = 4h×4w the grid of logits.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mres.model.attention import Attention
from mres.model.cris.config import CrisConfig
from mres.model.cris.neck import convolution

_SIDE = 3  # of the kernel that the sentence makes


class DecoderLayer(nn.Module):
    """Self-attention among places, cross-attention to the words, FFN; a norm before each and one more within."""

    def __init__(self, config: CrisConfig) -> None:
        super().__init__()
        width, hidden = config.text_width, int(config.text_width * config.decoder_mlp_ratio)
        self.self_norm, self.cross_norm, self.ffn_norm = (nn.LayerNorm(width) for _ in range(3))
        self.self_attention = Attention(width, config.decoder_heads, config.dropout)
        self.cross_attention = Attention(width, config.decoder_heads, config.dropout)
        self.self_out_norm, self.cross_out_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ffn = nn.Sequential(
            nn.Linear(width, hidden),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.LayerNorm(hidden),
            nn.Linear(hidden, width),
        )
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x_XNC: Tensor, words_XTC: Tensor, is_word_XT: Tensor) -> Tensor:
        h = math.isqrt(x_XNC.shape[1])
        place_NC, word_TC = sine_grid(h, x_XNC), sine(words_XTC.shape[1], words_XTC.shape[2], words_XTC)
        normed = self.self_norm(x_XNC)
        placed = normed + place_NC
        x_XNC = x_XNC + self.drop(self.self_out_norm(self.self_attention(placed, placed, normed)))
        query = self.cross_norm(x_XNC) + place_NC
        read = self.cross_attention(query, words_XTC + word_TC, words_XTC, is_word_XT)
        x_XNC = x_XNC + self.drop(self.cross_out_norm(read))
        return x_XNC + self.drop(self.ffn(self.ffn_norm(x_XNC)))


def sine(length: int, width: int, like: Tensor) -> Tensor:
    """Fixed positions of a sequence (Vaswani et al. 2017), sines and cosines in turn: (length, width), of `like`'s kind."""
    device = like.device
    rate = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10000.0) / width))
    angle = torch.arange(length, device=device)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).to(like.dtype)


def sine_grid(side: int, like_XNC: Tensor) -> Tensor:
    """Those of a square grid, (N, C): one half of the width says the column, the other the row."""
    half = sine(side, like_XNC.shape[-1] // 2, like_XNC)
    columns, rows = half[None].expand(side, -1, -1), half[:, None].expand(-1, side, -1)
    return torch.cat([columns, rows], dim=-1).flatten(0, 1)


class Projector(nn.Module):
    """The map at a quarter of the image, convolved with a kernel that each expression's sentence makes."""

    def __init__(self, config: CrisConfig) -> None:
        super().__init__()
        width, half = config.text_width, config.text_width // 2
        self.pixels = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear"),
            convolution(width, width, 3),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            convolution(width, half, 3),
            nn.Conv2d(half, half, 1),
        )
        self.kernel = nn.Linear(config.joint_width, half * _SIDE**2 + 1)

    def forward(self, map_XChw: Tensor, sentence_XJ: Tensor) -> Tensor:
        """Returns logits_XHW."""
        pixels_XCHW = self.pixels(map_XChw)
        X, C, H, W = pixels_XCHW.shape
        kernel_XS, bias_X1 = self.kernel(sentence_XJ).split([C * _SIDE**2, 1], dim=-1)
        # One product for each place of the kernel, then their shifted sum: a convolution in X groups is far slower.
        products_XSHW = (kernel_XS.view(X, _SIDE**2, C) @ pixels_XCHW.flatten(2)).unflatten(2, (H, W))
        padded_XSHW = F.pad(products_XSHW, [_SIDE // 2] * 4)
        shifted = (padded_XSHW[:, s, s // _SIDE :, s % _SIDE :][:, :H, :W] for s in range(_SIDE**2))
        return sum(shifted, bias_X1[..., None])
