"""UniRES's keys of the `model` section. No torch here: a config is checked before anything heavy loads."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from mres.model.config import ModelConfig, refuse_giants

# What a named size stands for. "base" and "large" have the shapes of CLIP ViT-B/16 and ViT-L/14, so that their released
# weights fit; "tiny" is what two CPU cores can train from scratch in minutes.
_CLIP_TOWER = {"vision_class_token": True, "vision_pre_norm": True, "quick_gelu": True, "stem": "patch"}
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "image_size": 96,
        "patch_size": 8,
        "stem": "conv",
        "vision_width": 96,
        "vision_depth": 4,
        "vision_heads": 3,
        "vision_mlp_ratio": 2.0,
        "vision_class_token": False,
        "vision_pre_norm": False,
        "low_group_tokens": 16,
        "high_group_tokens": 8,
        "text_width": 64,
        "text_depth": 2,
        "text_heads": 2,
        "text_vocab_size": 4096,
        "text_length": 17,
        "quick_gelu": False,
        "decoder_width": 64,
        "decoder_heads": 2,
        "decoder_mlp_ratio": 2.0,
        "stage1_layers": 1,
        "stage2_layers": 1,
        "mask_stride": 2,
        "pixel_width": 16,
        "dropout": 0.0,
    },
    "base": {
        **_CLIP_TOWER,
        "image_size": 448,
        "patch_size": 16,
        "vision_width": 768,
        "vision_depth": 12,
        "vision_heads": 12,
        "vision_mlp_ratio": 4.0,
        "low_group_tokens": 64,
        "high_group_tokens": 8,
        "text_width": 512,
        "text_depth": 12,
        "text_heads": 8,
        "text_vocab_size": 49408,
        "text_length": 20,
        "decoder_width": 512,
        "decoder_heads": 8,
        "decoder_mlp_ratio": 4.0,
        "stage1_layers": 3,
        "stage2_layers": 3,
        "mask_stride": 4,
        "pixel_width": 32,
        "dropout": 0.1,
    },
}
SIZES["large"] = {
    **SIZES["base"],
    "patch_size": 14,
    "mask_stride": 7,
    "vision_width": 1024,
    "vision_depth": 24,
    "vision_heads": 16,
    "text_width": 768,
    "text_heads": 12,
}


class UniresConfig(ModelConfig):
    """A key that is not given takes the value of the named `size` (docs/decisions.md gives every reason)."""

    sizes: ClassVar[dict[str, dict[str, Any]]] = SIZES
    size: Literal["tiny", "base", "large"] = "tiny"
    image_size: int = Field(ge=16, le=4096, description="side of the square input, pixels")
    patch_size: int = Field(ge=2, description="side of a ViT patch, pixels")
    stem: Literal["patch", "conv"] = Field(description="conv: strided convolutions; patch: one linear patch embedding")
    vision_width: int = Field(ge=8, le=65536)
    vision_depth: int = Field(ge=2, le=1024)
    vision_heads: int = Field(ge=1, le=1024)
    vision_mlp_ratio: float = Field(gt=0, le=64)
    vision_class_token: bool = Field(description="keep CLIP's class token as one more token of the encoder")
    vision_pre_norm: bool = Field(description="CLIP's LayerNorm before the first block, and its epsilon in all")
    low_group_tokens: int = Field(ge=1, le=65536, description="GroupViT's 64")
    high_group_tokens: int = Field(ge=1, le=65536, description="GroupViT's 8")
    split_block: int = Field(
        ge=1, description="blocks that the low-level group tokens go through; the high-level ones take the rest"
    )
    text_width: int = Field(ge=8, le=65536)
    text_depth: int = Field(ge=1, le=1024)
    text_heads: int = Field(ge=1, le=1024)
    text_vocab_size: int = Field(ge=1024, le=49408, description="CLIP's BPE, cut to its most frequent merges")
    text_length: int = Field(ge=4, le=77, description="tokens an expression, start and end included")
    quick_gelu: bool = Field(description="the activation of OpenAI's CLIP weights, in both towers")
    vision_quick_gelu: bool | None = Field(
        None,
        description="the image encoder's, where it differs (a timm ViT beside OpenAI's text tower); null: quick_gelu",
    )
    decoder_width: int = Field(ge=8, le=65536)
    decoder_heads: int = Field(ge=1, le=1024)
    decoder_mlp_ratio: float = Field(gt=0, le=64)
    stage1_layers: int = Field(ge=1, le=1024)
    stage2_layers: int = Field(ge=1, le=1024)
    dropout: float = Field(ge=0, lt=1, description="in both decoder stages")
    mask_stride: int = Field(ge=1, description="input pixels a logit")
    pixel_width: int = Field(ge=1, le=65536, description="channels of the pixel embedding under the mask head")
    filter_softmax: bool = Field(True, description="Language-guided Region Filter: softmax over the words")
    filter_scale: bool = Field(True, description="… divide the products by the square root of the width")
    filter_norm: bool = Field(True, description="… LayerNorm before the product and before the FFN")
    filter_shared: bool = Field(False, description="… one filter for both levels instead of one each")

    @classmethod
    def filled(cls, given: dict[str, Any]) -> dict[str, Any]:
        values = super().filled(given)
        if isinstance(values.get("vision_depth"), int):
            return {"split_block": max(1, values["vision_depth"] // 2), **values}
        return values

    @model_validator(mode="after")
    def _check(self) -> "UniresConfig":
        for whole, part in (
            ("image_size", "patch_size"),
            ("patch_size", "mask_stride"),
            ("vision_width", "vision_heads"),
            ("text_width", "text_heads"),
            ("decoder_width", "decoder_heads"),
        ):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(
                    f"{whole}={getattr(self, whole)} is not a multiple of {part}={getattr(self, part)}; change one of them"
                )
        side = self.image_size // self.patch_size
        layers = {
            "vision": self.vision_depth * self.vision_width**2 * (4 + 2 * self.vision_mlp_ratio),
            "text": self.text_depth * self.text_width**2 * 12 + self.text_vocab_size * self.text_width,
            "positions": side**2 * self.vision_width,
            "decoder": (self.stage1_layers + self.stage2_layers)
            * self.decoder_width**2
            * (8 + 2 * self.decoder_mlp_ratio),
        }
        refuse_giants(int(sum(layers.values())), "the widths and depths of vision, text and decoder")
        if self.split_block >= self.vision_depth:
            raise ValueError(f"split_block={self.split_block} must be below vision_depth={self.vision_depth}")
        if self.decoder_width % 4:
            raise ValueError(f"decoder_width={self.decoder_width} is not a multiple of 4 (2-D sine positions need it)")
        if self.stem == "conv":
            steps = self.patch_size // self.mask_stride
            if steps & (steps - 1) or self.mask_stride & (self.mask_stride - 1):
                raise ValueError(
                    f"stem=conv halves the image: patch_size={self.patch_size} and mask_stride={self.mask_stride} "
                    "must be powers of two"
                )
        return self
