"""The `model` section of a run that trains CRIS. No torch here: a config is checked before anything heavy loads."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from mres.model.config import ModelConfig, refuse_giants

# "r50" and "r101" have the shapes of CLIP RN50 and RN101, so that their released weights fit; "tiny" is what two CPU cores
# can train from scratch in minutes.
_RELEASED: dict[str, Any] = {
    "image_size": 416, "vision_width": 64, "vision_positions": 7, "text_width": 512, "text_depth": 12, "text_heads": 8,
    "text_vocab_size": 49408, "text_length": 17, "quick_gelu": True, "decoder_depth": 3, "decoder_heads": 8, "dropout": 0.1,
}  # fmt: skip
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "image_size": 128, "vision_width": 16, "vision_layers": (1, 1, 1, 1), "vision_positions": 4, "text_width": 64,
        "text_depth": 2, "text_heads": 2, "text_vocab_size": 4096, "text_length": 17, "quick_gelu": False, "joint_width": 64,
        "decoder_depth": 1, "decoder_heads": 2, "dropout": 0.0,
    },
    "r50": {**_RELEASED, "vision_layers": (3, 4, 6, 3), "joint_width": 1024},
    "r101": {**_RELEASED, "vision_layers": (3, 4, 23, 3), "joint_width": 512},
}  # fmt: skip


class CrisConfig(ModelConfig):
    """CRIS. A key that is not given takes the value of the named `size`."""

    sizes: ClassVar[dict[str, dict[str, Any]]] = SIZES
    kind: str = "cris"
    size: Literal["tiny", "r50", "r101"] = "tiny"
    image_size: int = Field(ge=32, le=4096, multiple_of=32, description="side of the square input, pixels")
    vision_width: int = Field(
        ge=2, le=4096, multiple_of=2, description="channels of the ResNet's stem; its last stage has 32 times"
    )
    vision_layers: tuple[int, int, int, int] = Field(description="bottlenecks of the ResNet's four stages")
    vision_positions: int = Field(
        ge=1,
        le=1024,
        description="side of the grid of learned positions, interpolated to the image's (7: CLIP learned at 224 pixels)",
    )
    text_width: int = Field(
        ge=8, le=65536, multiple_of=8, description="the decoder's too, which reads the words as they are"
    )
    text_depth: int = Field(ge=1, le=1024)
    text_heads: int = Field(ge=1, le=1024)
    text_vocab_size: int = Field(ge=1024, le=49408, description="CLIP's BPE, cut to its most frequent merges")
    text_length: int = Field(ge=4, le=77, description="tokens an expression, start and end included")
    quick_gelu: bool = Field(description="the text encoder's activation is that of OpenAI's CLIP weights")
    joint_width: int = Field(ge=8, le=65536, description="CLIP's joint space of images and sentences")
    decoder_depth: int = Field(ge=1, le=1024)
    decoder_heads: int = Field(ge=1, le=1024)
    decoder_mlp_ratio: float = Field(4.0, gt=0, le=64)
    dropout: float = Field(ge=0, lt=1, description="in the decoder")

    @model_validator(mode="after")
    def _check(self) -> "CrisConfig":
        for heads in ("text_heads", "decoder_heads"):
            if self.text_width % getattr(self, heads):
                raise ValueError(f"text_width={self.text_width} is not a multiple of {heads}={getattr(self, heads)}")
        if min(self.vision_layers) < 1 or max(self.vision_layers) > 1024:
            raise ValueError(
                f"vision_layers={list(self.vision_layers)}: every stage has one bottleneck or more, up to 1024"
            )
        bottlenecks = sum(17 * n * (self.vision_width * 2**stage) ** 2 for stage, n in enumerate(self.vision_layers))
        layers = self.text_width**2 * (12 * self.text_depth + (8 + 2 * self.decoder_mlp_ratio) * self.decoder_depth)
        pooled = (32 * self.vision_width) * (self.vision_positions**2 + 4 * 32 * self.vision_width)
        refuse_giants(int(bottlenecks + layers + pooled), "the widths and depths of vision, text and decoder")
        return self
