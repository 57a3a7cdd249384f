"""UniRES (Wang et al., "Unveiling Parts Beyond Objects", CVPR 2024, Fig. 4).

Shapes: B images, K expressions an image, X = B·K, C decoder width, D image width, E text width, N patches, T words,
L low- and G high-level group tokens, M all groups, h×w the grid of logits.
"""

import torch
from torch import Tensor, nn

from mres.model.text import TextEncoder
from mres.model.unires.config import UniresConfig
from mres.model.unires.decoder import DecoderLayer, MaskHead, SentenceGate, sine_positions
from mres.model.unires.filter import LanguageGuidedRegionFilter
from mres.model.unires.vision import VisionEncoder


class UniRES(nn.Module):
    """Images and K expressions each to K grids of mask logits each; the image is encoded once for all K."""

    def __init__(self, config: UniresConfig) -> None:
        super().__init__()
        width = config.decoder_width
        self.vision = VisionEncoder(config)
        self.text = TextEncoder(
            width=config.text_width,
            depth=config.text_depth,
            heads=config.text_heads,
            vocab_size=config.text_vocab_size,
            length=config.text_length,
            quick_gelu=config.quick_gelu,
        )
        self.patch_project = nn.Linear(config.vision_width, width)
        self.low_project = nn.Linear(config.vision_width, width)
        self.high_project = nn.Linear(config.vision_width, width)
        self.word_project = nn.Linear(config.text_width, width)
        self.low_filter = LanguageGuidedRegionFilter(config)
        self.high_filter = self.low_filter if config.filter_shared else LanguageGuidedRegionFilter(config)
        self.entry_gate, self.exit_gate = SentenceGate(config), SentenceGate(config)
        # The ViT has just mixed the patches, without the text as the first layer's self-attention would: it starts at the words.
        self.stage1 = nn.ModuleList(DecoderLayer(config, self_attention=i > 0) for i in range(config.stage1_layers))
        self.stage2 = nn.ModuleList(DecoderLayer(config) for _ in range(config.stage2_layers))
        self.head = MaskHead(config)
        grid = config.image_size // config.patch_size
        self.register_buffer("position_NC", sine_positions(grid, width), persistent=False)

    def forward(self, image_BCHW: Tensor, text_BKT: Tensor) -> Tensor:
        """Normalised images and token ids to mask logits_BKhw (logit > 0 is foreground at threshold 0.5)."""
        patches_BND, low_BLD, high_BGD, detail_BShw = self.vision(image_BCHW)
        words_BKTE, sentence_BKE, is_word_BKT = self.text(text_BKT)
        words_BKTC = self.word_project(words_BKTE)
        groups_BKMC = torch.cat(
            [
                self._filter(self.low_filter, self.low_project(low_BLD), words_BKTC, is_word_BKT),
                self._filter(self.high_filter, self.high_project(high_BGD), words_BKTC, is_word_BKT),
            ],
            dim=2,
        )
        patches_BNC = self.patch_project(patches_BND)
        pixels_BNRE = self.head.pixels(detail_BShw, patches_BNC)
        B, K = text_BKT.shape[:2]
        position_NC = self.position_NC.to(patches_BNC.dtype)
        x_XNC = self.entry_gate(patches_BNC[:, None], sentence_BKE).flatten(0, 1)
        for layer in self.stage1:
            x_XNC = layer(x_XNC, words_BKTC.flatten(0, 1), is_word_BKT.flatten(0, 1), position_NC)
        for layer in self.stage2:
            x_XNC = layer(x_XNC, groups_BKMC.flatten(0, 1), None, position_NC)
        x_BKNC = self.exit_gate(x_XNC.unflatten(0, (B, K)), sentence_BKE)
        return self.head(x_BKNC.flatten(0, 1), pixels_BNRE).unflatten(0, (B, K))

    @staticmethod
    def _filter(region_filter: nn.Module, groups_BGC: Tensor, words_BKTC: Tensor, is_word_BKT: Tensor) -> Tensor:
        groups_BKGC = groups_BGC[:, None].expand(-1, words_BKTC.shape[1], -1, -1)
        return region_filter(groups_BKGC, words_BKTC, is_word_BKT)

    def blocks(self) -> list[nn.Module]:
        """The modules to shard, checkpoint or compile one by one, in the order of the forward pass."""
        return [
            *self.vision.vit.blocks,
            *self.text.tower.transformer.resblocks,
            self.low_filter,
            *([] if self.high_filter is self.low_filter else [self.high_filter]),
            *self.stage1,
            *self.stage2,
        ]
