"""The Language-guided Region Filter (UniRES, Fig. 4, inset "LRF").

Shapes: B images, K expressions an image, G group tokens, T words, C decoder width.
"""

import torch
from torch import Tensor, nn

from mres.model.unires.config import UniresConfig


class LanguageGuidedRegionFilter(nn.Module):
    """Weights region (group) tokens by an expression: A = G ⊗ T, R = A ⊗ T, G' = G ⊕ R, out = G' ⊕ FFN(G').

    The figure draws no softmax, scale or norm. They are on by default, each for a reason (docs/decisions.md): the bare
    product A grows with the square of the features' norm and with the number of words; with all three off the layer is the
    figure to the letter.
    """

    def __init__(self, config: UniresConfig) -> None:
        super().__init__()
        width, hidden = config.decoder_width, int(config.decoder_width * config.decoder_mlp_ratio)
        self.softmax = config.filter_softmax
        self.scale = width**-0.5 if config.filter_scale else 1.0
        self.group_norm = nn.LayerNorm(width) if config.filter_norm else nn.Identity()
        self.ffn_norm = nn.LayerNorm(width) if config.filter_norm else nn.Identity()
        self.ffn = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, groups_BKGC: Tensor, words_BKTC: Tensor, is_word_BKT: Tensor) -> Tensor:
        """Returns the groups as the expression sees them, groups_BKGC."""
        products_BKGT = self.group_norm(groups_BKGC) @ words_BKTC.transpose(-1, -2) * self.scale
        padding_BK1T = ~is_word_BKT[:, :, None]
        if self.softmax:
            weights_BKGT = products_BKGT.masked_fill(padding_BK1T, -torch.inf).softmax(dim=-1)
        else:
            weights_BKGT = products_BKGT.masked_fill(padding_BK1T, 0.0)
        filtered_BKGC = groups_BKGC + weights_BKGT @ words_BKTC
        return filtered_BKGC + self.ffn(self.ffn_norm(filtered_BKGC))
