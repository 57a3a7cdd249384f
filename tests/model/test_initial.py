"""Parameters start as torch, timm and open_clip start them, but each from a stream of its own."""

import math

import pytest
import torch
from tiny_model import VARIANTS, build, config_of, inputs, outline
from torch import Tensor

from mres.model.initial import initial_weights, initialisers


@pytest.mark.parametrize("variant", VARIANTS)
def test_distributions_are_the_modules_own(variant: str) -> None:
    """Against a model that its libraries have started themselves."""
    theirs = build(seed=3, **VARIANTS[variant])
    drawn = dict(initial_weights(theirs, seed=4))
    assert list(drawn) == [name for name, _ in theirs.named_parameters()]
    for name, parameter in theirs.named_parameters():
        _assert_alike(name, drawn[name], parameter.detach())


def _assert_alike(name: str, ours: Tensor, theirs: Tensor) -> None:
    """Same shape and same values where they are constant; else same mean, spread and extremes, as far as samples tell."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    if theirs.std(correction=0) == 0 or name == "head.kernel.bias":
        assert torch.equal(ours, theirs), name
        return
    assert not torch.equal(ours, theirs), name
    n, spread = ours.numel(), float(theirs.std())
    if n < 32:
        assert ours.abs().max() < 6 * spread + theirs.abs().max(), name
        return
    assert float(ours.mean() - theirs.mean()) == pytest.approx(0, abs=6 * spread * math.sqrt(2 / n)), name
    assert float(ours.std()) == pytest.approx(spread, rel=6 / math.sqrt(n)), name
    # A normal's fourth moment is 3, a uniform's 1.8: the kinds tell apart.
    if n >= 1024:
        assert _fourth_moment(ours) == pytest.approx(_fourth_moment(theirs), abs=0.6), name


def _fourth_moment(values: Tensor) -> float:
    return float(((values - values.mean()) / values.std()).pow(4).mean())


def test_every_parameter_has_an_initialiser_and_no_initialiser_is_of_something_else() -> None:
    for changes in VARIANTS.values():
        model = outline(config_of(**changes))
        named, fills = {name for name, _ in model.named_parameters()}, set(initialisers(model))
        assert named <= fills
        assert all(name.endswith("bias") for name in fills - named), "only biases may be missing"


def test_values_depend_on_the_seed_and_the_name_alone() -> None:
    small, large = (outline(config_of(vision_depth=depth, split_block=1)) for depth in (2, 4))
    one, other, third = (dict(initial_weights(*args)) for args in ((small, 0), (large, 0), (small, 1)))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["patch_project.weight"], third["patch_project.weight"])
    assert not torch.equal(one["low_project.weight"], one["high_project.weight"]), "of the same shape and kind"


def test_global_random_numbers_are_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    dict(initial_weights(outline(config_of()), 0))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_an_outline_needs_only_its_parameters(variant: str) -> None:
    """Its parameters have no memory, its buffers are real: with the same weights it is the same model."""
    model, without_memory = build(**VARIANTS[variant]), outline(config_of(**VARIANTS[variant])).eval()
    assert all(parameter.is_meta for parameter in without_memory.parameters())
    buffers = dict(model.named_buffers())
    assert {n: b.shape for n, b in without_memory.named_buffers()} == {n: b.shape for n, b in buffers.items()}
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in without_memory.named_buffers())
    without_memory.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(without_memory(*inputs()), model(*inputs()))
