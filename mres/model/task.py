"""Model and loss, from a model's spec: what the trainer trains without knowing it.

Shapes: B images, S side of the square, K expressions an image, T tokens, h side of the grid of logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mres.errors import UserError
from mres.model.config import LossConfig, ModelConfig
from mres.model.construction import check_tensors, parameters_on_meta
from mres.model.spec import Encoder, Tokenize, Tower, load_spec
from mres.stream.batch import Batch, StreamShape


class SegmentationTask:
    """Referring-expression segmentation with a model of the config's kind."""

    def __init__(self, model: ModelConfig, loss: LossConfig) -> None:
        self._model, self._loss = model, loss
        self.spec = load_spec(model.kind)

    @cached_property
    def tokenizer(self) -> Tokenize:
        return self.spec.tokenizer(self._model)

    @cached_property
    def shape(self) -> StreamShape:
        return self.spec.shape(self._model)

    def outline(self, seed: int = 0) -> nn.Module:
        """The model without memory for its parameters, which `initial_weights` has values for; its few buffers are real.

        Args:
            seed: of what a constructor draws for a buffer.

        Raises:
            UserError: an encoder or tower of the spec that the model does not have, or tensors that cannot be trained.
        """
        with parameters_on_meta():
            model = self._construct(seed)
        check_tensors(model)
        for part in (self.spec.image_encoder, self.spec.text_encoder, self.spec.image_weights, self.spec.text_weights):
            self._check_part(model, part)
        return model

    def build(self, seed: int) -> nn.Module:
        """The whole model on the CPU, its weights drawn from `seed`, the same on every rank."""
        model = self.outline(seed)
        filled = {model.get_parameter(name): nn.Parameter(value) for name, value in self.initial_weights(model, seed)}
        tensors = {name: filled[own] for name, own in model.named_parameters(remove_duplicate=False)}  # tied ones twice
        model.load_state_dict(tensors, strict=False, assign=True)
        return model

    def initial_weights(self, module: nn.Module, seed: int) -> Iterable[tuple[str, Tensor]]:
        """The first value of every parameter of `module`, by its name."""
        return self.spec.initial_weights(module, seed)

    def blocks(self, module: nn.Module) -> list[nn.Module]:
        """What is sharded, computed again and compiled one by one.

        Raises:
            UserError: a block that is no submodule, or the model, or that is there twice or within another one.
        """
        names = {child: name for name, child in module.named_modules()}
        blocks, seen = list(self.spec.blocks(module)), list[str]()
        for block in blocks:
            name = names.get(block) if isinstance(block, nn.Module) else None
            problem = _no_block(block, name, seen)
            if problem or name is None:
                raise UserError(
                    f"model.kind='{self._model.kind}': the blocks of its spec have {problem}; they lie side by side"
                )
            seen.append(name)
        return blocks

    def logits(self, module: nn.Module, image_BCSS: Tensor, text_BKT: Tensor) -> Tensor:
        """uint8 images and token ids to mask logits_BKhh."""
        return self.spec.logits(self.spec.forward(module, image_BCSS, text_BKT))

    def losses(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Sums over the valid expressions of `batch`: "loss" (to differentiate) and its parts."""
        outputs = self.spec.forward(module, batch.image_BCSS, batch.text_BKT)
        return self._losses(outputs, batch, batch.valid_BK)

    def losses_of_each(self, module: nn.Module, batch: Batch) -> Iterator[dict[str, Tensor]]:
        """The same of each of K expressions alone, as if no other were valid; the forward pass is made once."""
        outputs = self.spec.forward(module, batch.image_BCSS, batch.text_BKT)
        for k in range(batch.valid_BK.shape[1]):
            valid_BK = torch.zeros_like(batch.valid_BK)
            valid_BK[:, k] = batch.valid_BK[:, k]
            yield self._losses(outputs, batch, valid_BK)

    def _losses(self, outputs: Any, batch: Batch, valid_BK: Tensor) -> dict[str, Tensor]:
        losses = self.spec.losses(outputs, batch.mask_BKhh.float() / 255, valid_BK, self._loss)
        odd = [name for name, value in losses.items() if not name.startswith("loss") or value.dim()]
        if odd or "loss" not in losses:
            raise UserError(
                f"model.kind='{self._model.kind}': its losses give {', '.join(losses)}{f', and {odd[0]!r} cannot be' if odd else ''}; "
                "they are sums, scalars, under names that begin with 'loss', and 'loss' itself is one of them"
            )
        return losses

    def _construct(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.spec.build(self._model)

    def _check_part(self, model: nn.Module, part: Encoder | Tower | None) -> None:
        names = () if part is None else (part.prefix, part.blocks) if isinstance(part, Encoder) else (part.prefix,)
        for name in filter(None, names):
            try:
                model.get_submodule(name)
            except AttributeError:
                known = ", ".join(child for child, _ in model.named_children())
                raise UserError(
                    f"model.kind='{self._model.kind}': its spec names the submodule '{name}', and the model has {known}"
                ) from None


def _no_block(block: Any, name: str | None, seen: list[str]) -> str | None:
    """What is wrong with a block of that name after others."""
    if not name:
        return "the whole model" if name == "" else f"{block!r}, which is no submodule of the model"
    if name in seen:
        return f"'{name}' twice"
    around = [(name, other) for other in seen if name.startswith(f"{other}.")]
    around += [(other, name) for other in seen if other.startswith(f"{name}.")]
    return f"'{around[0][0]}' inside '{around[0][1]}'" if around else None
