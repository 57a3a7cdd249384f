"""The learning rate of every step, and which parameters decay."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import MODEL

from mres.model.config import ModelConfig
from mres.model.unires import UniRES
from mres.train.config import OptimConfig
from mres.train.optim import describe_groups, learning_rate, parameter_groups


def test_warm_up_then_cosine() -> None:
    config = OptimConfig(lr=1.0, min_lr=0.1, warmup_steps=4)
    rates = [learning_rate(step, 24, config) for step in range(25)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[14] == pytest.approx(0.55), "half way between lr and min_lr"
    assert rates[9] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert rates[24] == pytest.approx(0.1)
    assert learning_rate(30, 24, config) == pytest.approx(0.1)


@given(st.integers(1, 50), st.integers(0, 80), st.floats(0, 1e-3))
def test_it_rises_then_falls_and_stays_in_its_range(total: int, warmup: int, min_lr: float) -> None:
    config = OptimConfig(lr=1e-3, min_lr=min_lr, warmup_steps=warmup)
    rates = [learning_rate(step, total, config) for step in range(total)]
    assert all(0 < rate <= 1e-3 * (1 + 1e-9) for rate in rates)
    top = min(warmup, total)
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)


@pytest.fixture(scope="module")
def model() -> UniRES:
    changes = {"vision_class_token": True, "vision_pre_norm": True, "stem": "patch", "stage1_layers": 2}
    return UniRES(ModelConfig.model_validate({**MODEL, **changes}))


def test_what_decays(model: UniRES) -> None:
    decay, rest = parameter_groups(model, 0.05)
    shapes = {name: parameter.ndim for name, parameter in model.named_parameters()}
    assert sorted([*decay.names, *rest.names]) == sorted(shapes), "every parameter is in one group"
    assert (decay.weight_decay, rest.weight_decay) == (0.05, 0.0)
    assert all(shapes[name] >= 2 for name in decay.names)
    assert {name for name in rest.names if shapes[name] >= 2} == {
        "vision.low_group_LD",
        "vision.high_group_GD",
        "vision.vit.cls_token",
        "vision.vit.pos_embed",
        "text.tower.positional_embedding",
        "text.tower.token_embedding.weight",
    }
    for name in ("vision.vit.blocks.0.attn.qkv.weight", "head.mix.weight", "vision.vit.patch_embed.proj.weight"):
        assert name in decay.names
    for name in ("vision.vit.blocks.0.attn.qkv.bias", "vision.vit.norm.weight", "vision.vit.norm_pre.weight"):
        assert name in rest.names


def test_the_groups_are_described(model: UniRES) -> None:
    lines = describe_groups(model, parameter_groups(model, 5e-4))
    assert lines[0].startswith("optimizer group: weight decay 0.0005, ")
    assert lines[1].startswith("optimizer group: weight decay 0, ")
    counts = [int(line.split(" tensors, ")[1].split(" parameters")[0].replace(",", "")) for line in lines]
    assert sum(counts) == sum(p.numel() for p in model.parameters())
