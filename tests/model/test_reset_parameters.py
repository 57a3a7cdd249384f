"""Modules that say nothing of initial values start by their own `reset_parameters`, alone and the same anywhere."""

import copy
import re

import pytest
import strange_toy as strange
import torch
from torch import Tensor, nn

from mres.errors import UserError
from mres.model.construction import parameters_on_meta
from mres.model.initial import initial_weights


def drawn(model: nn.Module, seed: int = 3) -> dict[str, Tensor]:
    return dict(initial_weights(model, seed))


def test_values_need_no_memory_and_depend_on_seed_and_name_alone() -> None:
    with_memory, outline = drawn(strange.Strange()), drawn(strange.outline())
    assert with_memory.keys() == outline.keys() == {name for name, _ in strange.Strange().named_parameters()}
    assert all(torch.equal(with_memory[name], outline[name]) for name in outline)
    assert not any(torch.isnan(value).any() for value in outline.values())
    assert not torch.equal(outline["embed.weight"], drawn(strange.outline(), 4)["embed.weight"])
    assert torch.equal(outline["blocks.0.act.weight"], torch.full((strange.WIDTH,), 0.25))
    assert torch.equal(outline["norm.weight"], torch.ones(strange.WIDTH))
    assert outline["scale.factor"].min() > 0.5
    assert not torch.equal(outline["blocks.0.conv.weight"], outline["blocks.1.conv.weight"])


@pytest.mark.parametrize(
    "kind",
    [
        nn.LSTM(3, 5), nn.MultiheadAttention(6, 2, add_bias_kv=True), nn.ConvTranspose2d(3, 4, 3), nn.Conv1d(3, 4, 3),
        nn.Conv3d(3, 4, 2), nn.Embedding(7, 3, padding_idx=2), nn.BatchNorm1d(4), nn.PReLU(3), nn.Bilinear(2, 3, 4),
    ],
    ids=lambda module: type(module).__name__,
)  # fmt: skip
def test_a_layer_starts_as_its_class_starts_it(kind: nn.Module) -> None:
    """Of the same random numbers come the same values."""
    model = nn.ModuleDict({"layer": copy.deepcopy(kind)})
    found = drawn(model)
    reset = getattr(kind, "reset_parameters", None) or kind._reset_parameters
    from mres.model.initial import _seed_of

    torch.manual_seed(_seed_of(3, "layer"))
    reset()
    for name, parameter in kind.named_parameters():
        if name != "out_proj.weight":  # a linear layer's own
            assert torch.equal(found[f"layer.{name}"], parameter), name


class Outer(nn.Module):
    """It fills what its children have, some of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def reset_parameters(self) -> None:
        self.first.weight.data.fill_(2.0)


def test_an_outer_module_has_the_last_word() -> None:
    with parameters_on_meta():
        model = nn.Sequential(Outer())
    found, alone = drawn(model), drawn(nn.Sequential(nn.ModuleDict({"second": nn.Linear(4, 4)})))
    assert torch.equal(found["0.first.weight"], torch.full((4, 4), 2.0))
    assert torch.equal(found["0.second.weight"], alone["0.second.weight"])


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(3))


class Forgetful(Bare):
    def reset_parameters(self) -> None:
        pass


class Reading(Bare):
    def reset_parameters(self) -> None:
        nn.init.constant_(self.token, self.inner.weight.sum().item())

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)


@pytest.mark.parametrize("kind", [Bare, Forgetful, Reading])
def test_what_nothing_fills_is_named_with_the_remedy(kind: type[nn.Module]) -> None:
    with parameters_on_meta():
        model = nn.ModuleDict({"part": kind()})
    with pytest.raises(UserError, match=re.escape("'part.token'")) as caught:
        drawn(model)
    assert "initialisers()" in str(caught.value)
