"""What a constructor does that would be lost is refused by name."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from mres.errors import UserError
from mres.model.construction import check_tensors, parameters_on_meta
from mres.model.initial import Fill, constant, initial_weights


class Model(nn.Module):
    """torch's layers; what else its constructor does is given."""

    def __init__(self, more: Callable[[nn.Module], object]) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(4, 4), nn.Linear(4, 5)
        self.words = nn.Embedding(5, 4, padding_idx=0)
        self.attention = nn.MultiheadAttention(4, 2)
        self.norm = nn.BatchNorm1d(4)
        self.lstm = nn.LSTM(4, 4)
        more(self)


def construct(more: Callable[[nn.Module], object], kind: type[Model] = Model) -> dict[str, torch.Tensor]:
    with parameters_on_meta():
        model = kind(more)
    check_tensors(model)
    return dict(initial_weights(model, seed=0))


def test_layers_as_they_are_and_tied_ones_are_kept() -> None:
    construct(lambda model: setattr(model.out, "weight", model.words.weight))


VALUES: dict[str, tuple[str, Callable[[nn.Module], object]]] = {
    "filled": ("fc.bias", lambda model: nn.init.zeros_(model.fc.bias)),
    "by apply": ("norm.weight", lambda model: model.norm.apply(lambda norm: nn.init.zeros_(norm.weight))),
    "past autograd": ("fc.weight", lambda model: model.fc.weight.data.normal_(0, 0.02)),
    "a row": ("words.weight", lambda model: model.words.weight.data[1].fill_(3)),
    "another one": ("fc.weight", lambda model: setattr(model.fc, "weight", nn.Parameter(torch.eye(4)))),
    "of a file": ("words.weight", lambda model: setattr(model, "words", nn.Embedding.from_pretrained(torch.eye(4)))),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_of_the_constructors_own_are_refused(name: str) -> None:
    parameter, more = VALUES[name]
    with pytest.raises(UserError) as refused:
        construct(more)
    assert f"'{parameter}'" in str(refused.value)
    assert "initialisers()" in str(refused.value)
    if name == "filled":
        assert "test_construction.py:" in str(refused.value), "where"


class Said(Model):
    def initialisers(self) -> dict[str, Fill]:
        return {"fc.bias": constant(0.0)}


def test_what_initialisers_says_may_be_filled() -> None:
    assert construct(lambda model: nn.init.zeros_(model.fc.bias), Said)["fc.bias"].eq(0).all()


def test_what_cannot_be_trained_or_kept_is_refused() -> None:
    cases: list[tuple[str, Callable[[nn.Module], object]]] = [
        ("complex64", lambda model: setattr(model, "more", nn.Parameter(torch.zeros(3, dtype=torch.complex64)))),
        ("int32", lambda model: setattr(model, "more", nn.Parameter(torch.zeros(3, dtype=torch.int32), False))),
        ("_u", lambda model: nn.utils.parametrizations.spectral_norm(model.fc)),
        ("lazy", lambda model: setattr(model, "more", nn.LazyLinear(3))),
    ]
    for said, more in cases:
        with pytest.raises(UserError, match=said):
            construct(more)
