"""CRIS (Wang et al., "CRIS: CLIP-Driven Referring Image Segmentation", CVPR 2022), written from the paper.

Shapes: B images, K expressions an image, X = B·K, T words, C width, J joint width, N = h·w places at 1/16 of the image,
H×W the grid of logits, a quarter of the image.
"""

from torch import Tensor, nn

from mres.model.cris.config import CrisConfig
from mres.model.cris.decoder import DecoderLayer, Projector
from mres.model.cris.neck import Neck
from mres.model.cris.vision import ImageEncoder
from mres.model.text import TextEncoder


class CRIS(nn.Module):
    """Images and K expressions each to K grids of mask logits each; the image is encoded once for all K.

    While it trains, BatchNorm takes the statistics of all expressions of a batch, empty places included.
    """

    def __init__(self, config: CrisConfig) -> None:
        super().__init__()
        self.vision = ImageEncoder(config)
        self.text = TextEncoder(
            width=config.text_width, depth=config.text_depth, heads=config.text_heads, vocab_size=config.text_vocab_size,
            length=config.text_length, quick_gelu=config.quick_gelu, joint_width=config.joint_width,
        )  # fmt: skip
        self.neck = Neck(config)
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_depth))
        self.norm = nn.LayerNorm(config.text_width)
        self.projector = Projector(config)

    def forward(self, image_BCHW: Tensor, text_BKT: Tensor) -> Tensor:
        """Normalised images and token ids to mask logits_BKHW (logit > 0 is foreground at threshold 0.5)."""
        words_BKTC, sentence_BKJ, is_word_BKT = self.text(text_BKT)
        map_XChw = self.neck(*self.vision(image_BCHW), sentence_BKJ)
        x_XNC = map_XChw.flatten(2).transpose(1, 2)
        for layer in self.decoder:
            x_XNC = layer(x_XNC, words_BKTC.flatten(0, 1), is_word_BKT.flatten(0, 1))
        map_XChw = self.norm(x_XNC).transpose(1, 2).unflatten(2, map_XChw.shape[-2:])
        return self.projector(map_XChw, sentence_BKJ.flatten(0, 1)).unflatten(0, text_BKT.shape[:2])

    def blocks(self) -> list[nn.Module]:
        """The modules to shard, recompute or compile one by one, in the order of the forward pass."""
        tower = self.vision.tower
        bottlenecks = [block for stage in (tower.layer1, tower.layer2, tower.layer3, tower.layer4) for block in stage]
        return [*self.text.tower.transformer.resblocks, *bottlenecks, self.neck, *self.decoder, self.projector]
