"""A model of one's own, whole: convolutions over the image, a convolution over the words, and a product of the two.

    python launch/train.py --config configs/demo.yaml model.kind=docs/own_model.py:SPEC

Shapes: B images, K expressions an image, X = B·K, T tokens, E word width, D channels, h×w grid of logits (a quarter of S).
"""

from pydantic import Field
from torch import Tensor, nn

from mres.model.config import ModelConfig
from mres.model.spec import Encoder, ModelSpec
from mres.model.text import Tokenizer
from mres.stream.batch import StreamShape

STRIDE = 4  # input pixels a logit


class OwnConfig(ModelConfig):
    """The keys of the `model` section, with what they may be."""

    image_size: int = Field(96, ge=32, le=1024, multiple_of=16, description="side of the square input, pixels")
    width: int = Field(64, ge=16, multiple_of=8)
    depth: int = Field(3, ge=1, description="blocks that see image and text")
    vocab_size: int = Field(4096, ge=1024, le=49408)
    text_length: int = Field(17, ge=4, le=77)


def convolution(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1)
    return nn.Sequential(layer, nn.GroupNorm(8, outputs), nn.GELU())


class Block(nn.Module):
    """Scales the channels by the sentence, then looks around, further in each block."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, width)
        self.look = nn.Conv2d(width, width, kernel_size=3, padding=dilation, dilation=dilation)
        self.norm = nn.GroupNorm(8, width)

    def forward(self, x_XDhw: Tensor, sentence_XD: Tensor) -> Tensor:
        gated_XDhw = x_XDhw * (1 + self.gate(sentence_XD)[:, :, None, None])
        return x_XDhw + nn.functional.gelu(self.norm(self.look(gated_XDhw)))


class OwnModel(nn.Module):
    def __init__(self, config: OwnConfig) -> None:
        super().__init__()
        width = config.width
        self.image = nn.Sequential(convolution(3, width // 2, 2), convolution(width // 2, width, 2))
        self.words = nn.Embedding(config.vocab_size, width)
        self.text = nn.Conv1d(width, width, kernel_size=3, padding=1)
        self.blocks = nn.ModuleList(Block(width, dilation=2**i) for i in range(config.depth))
        self.head = nn.Conv2d(width, 1, kernel_size=1)

    def forward(self, image_BCHW: Tensor, text_BKT: Tensor) -> Tensor:
        """Normalised images and token ids to logits_BKhw; the image is looked at once for all K."""
        B, K = image_BCHW.shape[0], text_BKT.shape[1]
        text_XT = text_BKT.flatten(0, 1)
        image_BDhw = self.image(image_BCHW)
        words_XDT = self.text(self.words(text_XT).transpose(1, 2))
        is_word_X1T = (text_XT[:, None] != 0).to(words_XDT.dtype)  # an empty place has none: no division by 0
        sentence_XD = (words_XDT * is_word_X1T).sum(dim=2) / is_word_X1T.sum(dim=2).clamp(min=1)
        x_XDhw = image_BDhw[:, None].expand(-1, K, -1, -1, -1).flatten(0, 1)
        for block in self.blocks:
            x_XDhw = block(x_XDhw, sentence_XD)
        return self.head(x_XDhw).squeeze(1).unflatten(0, (B, K))


SPEC = ModelSpec(
    name="own model",
    config=OwnConfig,
    build=OwnModel,
    shape=lambda config: StreamShape(config.image_size, STRIDE, config.text_length),
    tokenizer=lambda config: Tokenizer(config.vocab_size, config.text_length),
    blocks=lambda model: list(model.blocks),
    text_encoder=Encoder(prefix="words"),
    no_decay=("words",),
)
