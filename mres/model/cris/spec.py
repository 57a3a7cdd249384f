"""CRIS as a `ModelSpec`. No torch at the top: the config is checked before it loads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mres.model.cris.config import CrisConfig
from mres.model.spec import Encoder, ModelSpec, Tower

if TYPE_CHECKING:
    from torch import nn

    from mres.model.text import Tokenizer
    from mres.stream.batch import StreamShape

_STRIDE = 4  # input pixels a logit
# What of the ResNet lies below its last stage, whose bottlenecks count for `optim.layer_decay`.
_BELOW = ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "layer1", "layer2", "layer3")


def _build(config: CrisConfig) -> nn.Module:
    from mres.model.cris.cris import CRIS

    return CRIS(config)


def _shape(config: CrisConfig) -> StreamShape:
    from mres.stream.batch import StreamShape

    return StreamShape(config.image_size, _STRIDE, config.text_length)


def _tokenizer(config: CrisConfig) -> Tokenizer:
    from mres.model.text import Tokenizer

    return Tokenizer(config.text_vocab_size, config.text_length)


def _value(config: CrisConfig, key: str) -> Any:
    value = getattr(config, key)
    return list(value) if isinstance(value, tuple) else value


SPEC = ModelSpec(
    name="CRIS",
    config=CrisConfig,
    build=_build,
    shape=_shape,
    tokenizer=_tokenizer,
    blocks=lambda model: model.blocks(),
    image_encoder=Encoder("vision", "vision.tower.layer4", tuple(f"vision.tower.{name}" for name in _BELOW)),
    text_encoder=Encoder(
        "text", "text.tower.transformer.resblocks", ("text.tower.token_embedding", "text.tower.positional_embedding")
    ),
    no_decay=("positional_embedding", "token_embedding"),
    image_weights=Tower(
        "clip-resnet",
        "vision.tower",
        {size: f"vision_{size}" for size in ("width", "layers", "positions")} | {"joint_width": "joint_width"},
        _value,
    ),
    text_weights=Tower(
        "clip-text-joint",
        "text.tower",
        {size: f"text_{size}" for size in ("width", "depth", "vocab_size", "length", "heads")}
        | {"quick_gelu": "quick_gelu", "joint_width": "joint_width"},
    ),
    free_keys=frozenset({"size", "dropout"}),
    fitted_keys=frozenset({"image_size", "text_length"}),
)
