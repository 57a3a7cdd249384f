"""Named tensors matched with a model's parameters and persistent buffers, by names and shapes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mres.formats.folder import CheckpointError
from mres.model.buffers import named_tensors, persistent_buffers
from mres.pretrained.report import Restored, groups_of


@dataclass(frozen=True, slots=True)
class Matched:
    """Weights that fit a model: gone through, they come whole, one after another, by the model's names.

    Raises:
        CheckpointError: while they are gone through, tensors that are one in the model differ.
    """

    restored: Restored
    weights: Iterable[tuple[str, Tensor]]
    own_names: Mapping[str, str]  # each name that a parameter may have → the one it goes by
    prefix: str = ""

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        shared = {name for name, own in self.own_names.items() if name != own}
        shared |= {self.own_names[name] for name in shared}
        kept: dict[str, tuple[str, Tensor]] = {}
        for name, value in self.weights:
            if name not in self.own_names:
                continue  # left behind, which `restored` says
            own = self.own_names[name]
            if own in kept:
                self._check_equal(kept[own], (name, value))
                continue
            if name in shared:
                kept[own] = name, value
            yield self.prefix + own, value

    def _check_equal(self, first: tuple[str, Tensor], second: tuple[str, Tensor]) -> None:
        if not torch.equal(first[1], second[1]):
            names = " and ".join(sorted((first[0], second[0]), key=list(self.own_names).index))
            raise CheckpointError(
                f"{self.restored.source} does not fit the model: {names} are one tensor in it and differ there"
            )


@dataclass(frozen=True, slots=True)
class Fit:
    """Which of a model's tensors have one in a source, and which tensors there have none in the model."""

    restored: Restored
    own_names: dict[str, str]
    unknown: list[str]


def fit(model: nn.Module, found: Mapping[str, torch.Size], source: str, *, strict: bool = True) -> Fit:
    """Every parameter and buffer has a tensor of its name, or of one of its names where it is used in several places.

    Args:
        strict: none may be missing and none unknown; else, only what is in both must have one shape.

    Raises:
        CheckpointError: naming the tensors.
    """
    names_of: dict[Tensor, list[str]] = {}
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *persistent_buffers(model).items()]:
        names_of.setdefault(tensor, []).append(name)
    own_names = {name: names[0] for names in names_of.values() for name in names}
    missing = sorted(names[0] for names in names_of.values() if not set(names) & set(found))
    unknown = sorted(set(found) - set(own_names))
    taken = {tensor: names for tensor, names in names_of.items() if set(names) & set(found)}
    if (strict and (missing or unknown)) or not taken:
        raise CheckpointError(
            f"{source} does not fit the model: {len(missing)} tensors are missing {missing[:3]}, "
            f"{len(unknown)} are unknown {unknown[:3]}"
        )
    for tensor, names in taken.items():
        for name in names:
            if name in found and found[name] != tensor.shape:
                raise CheckpointError(
                    f"{source} does not fit the model: {name} has shape {list(found[name])}, the model's is "
                    f"{list(tensor.shape)}"
                )
    sizes = {names[0]: tensor.nbytes for tensor, names in taken.items()}
    restored = Restored(
        source,
        tensors=len(taken),
        all_tensors=len(names_of),
        bytes=sum(sizes.values()),
        all_bytes=sum(tensor.nbytes for tensor in names_of),
        groups=groups_of(sizes.items()),
        kept=tuple(missing),
    )
    return Fit(restored, own_names, unknown)


@torch.no_grad()
def copy_into(model: nn.Module, matched: Matched) -> Restored:
    """Fills a model that has memory."""
    named = named_tensors(model)
    for name, value in matched:
        named[name].copy_(value)
    return matched.restored
