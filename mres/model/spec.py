"""A model as data: what everything else of mres needs to know of it. No torch: a config is checked before it loads.

Shapes: B images, K expressions an image, S side of the square, T tokens, h side of the grid of logits, E texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from typing_extensions import Self

from mres.errors import UserError, near
from mres.io.plugins import load_object, origin
from mres.model.config import LossConfig, ModelConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mres.stream.batch import StreamShape

# The kinds that come with mres; any other is named as path/to/file.py:NAME or package.module:NAME.
KINDS = {"unires": "mres.model.unires.spec:SPEC", "cris": "mres.model.cris.spec:SPEC"}


class Tokenize(Protocol):
    """Texts to token ids of one length; `mres.model.text.Tokenizer` is CLIP's."""

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, int]:
        """Returns int32 ids_ET and how many texts had to be cut."""
        ...

    def texts(self, ids_ET: Tensor) -> list[str]:
        """What the ids say."""
        ...


@dataclass(frozen=True)
class Encoder:
    """An encoder's names: of all of it, of its blocks (children, the lowest first), if it has some, and of what lies below them."""

    prefix: str
    blocks: str | None = None
    below: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tower:
    """A part of the model that files of other libraries fit.

    Attributes:
        family: which tensors it has, under which names (mres/pretrained/families.py).
        prefix: the submodule.
        keys: what a file says of its tower (width, depth, heads …) → the key of the model's config that must say the same;
            what has no key is not compared.
        value: what a config says under a key.
    """

    family: Literal["clip-text", "clip-text-joint", "vit", "clip-resnet"]
    prefix: str
    keys: Mapping[str, str]
    value: Callable[[Any, str], Any] = getattr


def _forward(module: nn.Module, image_BCSS: Tensor, text_BKT: Tensor) -> Any:
    from mres.model.image import normalise

    return module(normalise(image_BCSS), text_BKT)


def _mask_losses(outputs: Any, target_BKhh: Tensor, valid_BK: Tensor, config: LossConfig) -> dict[str, Tensor]:
    from mres.model.loss import mask_losses

    return mask_losses(outputs, target_BKhh, valid_BK, config)


def _initial_weights(module: nn.Module, seed: int) -> Iterator[tuple[str, Tensor]]:
    from mres.model.initial import initial_weights

    return initial_weights(module, seed)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The pieces of a model; docs/own-model.md has an example of all that is needed.

    Attributes:
        name: for people.
        citation: of the paper, for model cards.
        config: the keys of the `model` section.
        build: the module, by an ordinary constructor; parameters get their first values from `initial_weights`.
        shape: what the stream draws images, masks and texts for.
        tokenizer: of the texts.
        blocks: submodules to shard, compute again in backward, and compile one by one, in the order of the forward pass.
        forward: uint8 images and token ids to the module's outputs; default: normalised as CLIP does it, into the module.
        logits: outputs to mask logits_BKhh, of which those above 0 are foreground; default: they are the outputs.
        losses: sums (not means) over the valid expressions, "loss" the one to differentiate; the target is the covered
            share of each logit's cell, 0…1. Default: `mres.model.loss.mask_losses`.
        initial_weights: every parameter by name, the same for a seed on any rank; default: `mres.model.initial`.
        image_encoder, text_encoder: what optim.image_lr_scale, text_lr_scale and layer_decay are about; None: nothing.
        no_decay: parts of names of parameters without weight decay, besides vectors.
        image_weights, text_weights: what checkpoint.image_weights and text_weights fill; None: nothing.
        free_keys: config keys that weights do not depend on.
        fitted_keys: config keys that only position embeddings depend on, which are made to fit.
    """

    name: str
    citation: str = ""
    config: type[ModelConfig]
    build: Callable[[Any], nn.Module]
    shape: Callable[[Any], StreamShape]
    tokenizer: Callable[[Any], Tokenize]
    blocks: Callable[[Any], Sequence[nn.Module]]
    forward: Callable[[nn.Module, Tensor, Tensor], Any] = _forward
    logits: Callable[[Any], Tensor] = lambda outputs: outputs
    losses: Callable[[Any, Tensor, Tensor, LossConfig], dict[str, Tensor]] = _mask_losses
    initial_weights: Callable[[nn.Module, int], Iterable[tuple[str, Tensor]]] = _initial_weights
    image_encoder: Encoder | None = None
    text_encoder: Encoder | None = None
    no_decay: tuple[str, ...] = ()
    image_weights: Tower | None = None
    text_weights: Tower | None = None
    free_keys: frozenset[str] = frozenset()
    fitted_keys: frozenset[str] = frozenset()

    def __new__(cls, **pieces: Any) -> Self:
        """Names the piece that a dataclass's own TypeError would call an argument."""
        known = {piece.name: piece.default is MISSING for piece in fields(cls)}
        for name in pieces:
            if name not in known:
                raise UserError(f"the ModelSpec has no piece '{name}'; {near(name, known.keys())}")
        lacking = [name for name, is_required in known.items() if is_required and name not in pieces]
        if pieces and lacking:
            raise UserError(f"the ModelSpec lacks the piece '{lacking[0]}', {_DUE[lacking[0]]}")
        return super().__new__(cls)


# What each piece must be, for people.
_DUE = {
    "name": "a text",
    "citation": "a text",
    "config": "a class derived from mres.model.config.ModelConfig",
    "build": "a function of the config that returns the module",
    "shape": "a function of the config that returns a StreamShape",
    "tokenizer": "a function of the config that returns a tokenizer",
    "blocks": "a function of the module that returns a list of its submodules",
    "forward": "a function of the module, images and token ids that returns outputs",
    "logits": "a function of the outputs that returns logits",
    "losses": "a function of outputs, target, valid and the loss section that returns losses by name",
    "initial_weights": "a function of the module and a seed that yields names and values",
    "image_encoder": "an Encoder or None",
    "text_encoder": "an Encoder or None",
    "no_decay": "a tuple of texts",
    "image_weights": "a Tower or None",
    "text_weights": "a Tower or None",
    "free_keys": "a frozenset of texts",
    "fitted_keys": "a frozenset of texts",
}


def load_spec(kind: str) -> ModelSpec:
    """The spec of `model.kind`; a file is run once a process.

    Raises:
        UserError: no such kind, file or module, one that fails while it is imported, or a spec that lacks a piece.
    """
    if kind not in KINDS and ":" not in kind:
        hint = near(kind, KINDS.keys(), otherwise=f"allowed: {', '.join(KINDS)}")
        raise UserError(
            f"model.kind='{kind}': {hint} (a model of your own: path/to/my_model.py:SPEC or package.module:SPEC)"
        )
    found = load_object(KINDS.get(kind, kind), "model.kind")
    if not isinstance(found, ModelSpec):
        raise UserError(f"model.kind='{kind}' is of type {type(found).__name__}; name a mres.model.spec.ModelSpec")
    for piece in fields(ModelSpec):
        _check_piece(piece.name, str(piece.type), getattr(found, piece.name), kind)
    return found


def _check_piece(name: str, annotation: str, value: Any, kind: str) -> None:
    if name == "config":
        good = isinstance(value, type) and issubclass(value, ModelConfig)
    elif annotation.startswith("Callable"):
        good = callable(value)
    else:
        wanted = {"str": str, "tuple": tuple, "frozenset": frozenset, "Encoder": Encoder | None, "Tower": Tower | None}
        good = isinstance(value, wanted[annotation.split("[")[0].split(" ")[0]])
    if not good:
        shown = f"the class {value.__name__}" if isinstance(value, type) else repr(value)
        raise UserError(f"model.kind='{kind}': its piece '{name}' is {shown}, and {_DUE[name]} is due")


def absolute_kind(kind: str) -> str:
    """The kind by a path that does not depend on the working directory."""
    where, _, name = kind.rpartition(":")
    return f"{Path(where).resolve()}:{name}" if where.endswith(".py") else kind


def is_same_kind(one: str, other: str) -> bool:
    """Whether two kinds are one, which a file that has moved still is."""
    return Path(one).name == Path(other).name


def origin_of_kind(kind: str) -> dict[str, str]:
    """Where a kind that does not come with mres was found, and which it was: what a checkpoint says of it."""
    if kind in KINDS:
        return {}
    path, sha256 = origin(kind)
    return {"kind_file": path, "kind_sha256": sha256}
