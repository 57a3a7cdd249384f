"""UniRES as a `ModelSpec`. No torch at the top: the config is checked before it loads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mres.model.spec import Encoder, ModelSpec, Tower
from mres.model.unires.config import UniresConfig

if TYPE_CHECKING:
    from torch import nn

    from mres.model.text import Tokenizer
    from mres.stream.batch import StreamShape


def _build(config: UniresConfig) -> nn.Module:
    from mres.model.unires.unires import UniRES

    return UniRES(config)


def _shape(config: UniresConfig) -> StreamShape:
    from mres.stream.batch import StreamShape

    return StreamShape(config.image_size, config.mask_stride, config.text_length)


def _tokenizer(config: UniresConfig) -> Tokenizer:
    from mres.model.text import Tokenizer

    return Tokenizer(config.text_vocab_size, config.text_length)


def _value(config: UniresConfig, key: str) -> Any:
    from mres.model.unires.vision import has_quick_gelu

    return has_quick_gelu(config) if key == "vision_quick_gelu" else getattr(config, key)


SPEC = ModelSpec(
    name="UniRES",
    citation="Wang et al., “Unveiling Parts Beyond Objects”, CVPR 2024",
    config=UniresConfig,
    build=_build,
    shape=_shape,
    tokenizer=_tokenizer,
    blocks=lambda model: model.blocks(),
    image_encoder=Encoder(
        "vision",
        "vision.vit.blocks",
        (
            "vision.vit.patch_embed",
            "vision.vit.pos_embed",
            "vision.vit.cls_token",
            "vision.vit.norm_pre",
            "vision.stem",
        ),
    ),
    text_encoder=Encoder(
        "text", "text.tower.transformer.resblocks", ("text.tower.token_embedding", "text.tower.positional_embedding")
    ),
    # Positions, tokens and embeddings: pulling them towards zero removes information, not complexity.
    no_decay=("pos_embed", "positional_embedding", "token_embedding", "cls_token", "low_group", "high_group"),
    image_weights=Tower(
        "vit",
        "vision.vit",
        {
            "stem": "stem",
            "patch_size": "patch_size",
            "width": "vision_width",
            "depth": "vision_depth",
            "mlp_ratio": "vision_mlp_ratio",
            "class_token": "vision_class_token",
            "pre_norm": "vision_pre_norm",
            "heads": "vision_heads",
            "quick_gelu": "vision_quick_gelu",
        },
        _value,
    ),
    text_weights=Tower(
        "clip-text",
        "text.tower",
        {
            "width": "text_width",
            "depth": "text_depth",
            "vocab_size": "text_vocab_size",
            "length": "text_length",
            "heads": "text_heads",
            "quick_gelu": "quick_gelu",
        },
    ),
    free_keys=frozenset({"size", "dropout"}),
    fitted_keys=frozenset({"image_size", "text_length"}),
)
