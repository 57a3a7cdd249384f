"""The learning rate of every step, and which parameters decay."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import MODEL
from torch import nn

from mres.errors import UserError
from mres.model.spec import Encoder
from mres.model.unires.config import UniresConfig
from mres.model.unires.spec import SPEC
from mres.model.unires.unires import UniRES
from mres.train.config import OptimConfig
from mres.train.optim import describe_groups, freeze, lr_scales, parameter_groups
from mres.train.schedule import average_weight, learning_rate, warmup_steps


def test_warm_up_then_cosine() -> None:
    config = OptimConfig(lr=1.0, min_lr=0.1, warmup_steps=4)
    rates = [learning_rate(step, 24, config, 6) for step in range(25)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[14] == pytest.approx(0.55), "half way between lr and min_lr"
    assert rates[9] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert rates[24] == pytest.approx(0.1)
    assert learning_rate(30, 24, config, 6) == pytest.approx(0.1)


@given(st.integers(1, 50), st.integers(0, 80), st.floats(0, 1e-3))
def test_it_rises_then_falls_and_stays_in_its_range(total: int, warmup: int, min_lr: float) -> None:
    config = OptimConfig(lr=1e-3, min_lr=min_lr, warmup_steps=warmup)
    rates = [learning_rate(step, total, config, 6) for step in range(total)]
    assert all(0 < rate <= 1e-3 * (1 + 1e-9) for rate in rates)
    top = min(warmup, total)
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ({}, 1000),
        ({"warmup_steps": 7}, 7),
        ({"warmup_steps": 0}, 0),
        ({"warmup_epochs": 1.5}, 9),
        ({"warmup_epochs": 0}, 0),
    ],
)
def test_a_warm_up_in_steps_or_epochs(given: dict, steps: int) -> None:
    config = OptimConfig(lr=1.0, **given)
    assert warmup_steps(config, 6) == steps
    assert learning_rate(max(steps - 1, 0), 5000, config, 6) == pytest.approx(1.0)


@given(st.floats(0.5, 0.9999), st.integers(1, 20), st.integers(0, 5000))
def test_the_average_moves_only_when_due_and_never_past_the_weights(decay: float, every: int, step: int) -> None:
    weight = average_weight(step, OptimConfig(ema_decay=decay, ema_every=every))
    assert (weight > 0) == ((step + 1) % every == 0)
    assert weight <= 1
    if weight and step > 10 / (1 - decay):
        assert weight == pytest.approx(1 - decay**every)


def test_without_a_decay_no_average_moves() -> None:
    assert average_weight(3, OptimConfig()) == 0


@pytest.fixture(scope="module")
def model() -> UniRES:
    changes = {"vision_class_token": True, "vision_pre_norm": True, "stem": "patch", "stage1_layers": 2}
    return UniRES(UniresConfig.model_validate({**MODEL, **changes}))


def test_what_decays(model: UniRES) -> None:
    decay, rest = parameter_groups(model, 0.05, no_decay=SPEC.no_decay)
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


def test_groups_that_are_treated_alike_are_one(model: UniRES) -> None:
    (group,) = parameter_groups(model, 0.0)
    assert sorted(group.names) == sorted(name for name, _ in model.named_parameters())


def build(**changes) -> UniRES:
    return UniRES(
        UniresConfig.model_validate({**MODEL, "vision_depth": 3, "split_block": 1, "text_depth": 2, **changes})
    )


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("vision.vit.blocks.2.attn.qkv.weight", 0.2),
        ("vision.vit.blocks.1.norm1.bias", 0.2 * 0.5),
        ("vision.vit.blocks.0.mlp.fc1.weight", 0.2 * 0.25),
        ("vision.vit.pos_embed", 0.2 * 0.125),
        ("vision.vit.patch_embed.proj.weight", 0.2 * 0.125),
        ("vision.vit.norm.weight", 0.2),
        ("vision.low_group_LD", 0.2),
        ("vision.detail.down.weight", 0.2),
        ("text.tower.transformer.resblocks.1.ln_1.weight", 0.1),
        ("text.tower.transformer.resblocks.0.mlp.c_fc.weight", 0.1 * 0.5),
        ("text.tower.token_embedding.weight", 0.1 * 0.25),
        ("text.tower.ln_final.weight", 0.1),
        ("word_project.weight", 1.0),
        ("stage1.0.cross_norm.weight", 1.0),
    ],
)
def test_learning_rates_by_encoder_and_layer(name: str, scale: float) -> None:
    model = build(stem="patch")
    config = OptimConfig(layer_decay=0.5, image_lr_scale=0.2, text_lr_scale=0.1)
    scales = lr_scales(model, config, SPEC)
    assert scales[name] == pytest.approx(scale)
    groups = parameter_groups(model, 0.05, scales, no_decay=SPEC.no_decay)
    (own,) = [group for group in groups if name in group.names]
    assert own.lr_scale == scales[name]
    keys = [(group.weight_decay, group.lr_scale) for group in groups]
    assert len(keys) == len(set(keys))
    assert sum(len(group.names) for group in groups) == len(list(model.named_parameters()))


def test_the_conv_stem_lies_below_the_first_block() -> None:
    scales = lr_scales(build(stem="conv"), OptimConfig(layer_decay=0.5), SPEC)
    assert scales["vision.stem.project.weight"] == 0.125


def test_frozen_parameters_are_in_no_group() -> None:
    model = build()
    freeze(model, ["text", "vision.vit.blocks.1", "head.mix.weight"])
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {
        name
        for name, _ in model.named_parameters()
        if name.startswith(("text.", "vision.vit.blocks.1.")) or name == "head.mix.weight"
    }
    grouped = {name for group in parameter_groups(model, 0.05, no_decay=SPEC.no_decay) for name in group.names}
    assert grouped.isdisjoint(frozen)
    assert len(grouped | frozen) == len(list(model.named_parameters()))


def test_a_prefix_ends_at_a_dot() -> None:
    model = build(vision_depth=12, split_block=6)
    freeze(model, ["vision.vit.blocks.1"])
    assert all(parameter.requires_grad for parameter in model.vision.vit.blocks[10].parameters())
    assert not any(parameter.requires_grad for parameter in model.vision.vit.blocks[1].parameters())


@pytest.mark.parametrize(
    ("prefixes", "words"),
    [
        (["txt"], "optim.freeze: no parameter's name begins with 'txt'; did you mean 'text'?"),
        (["text", "vision.vit.block"], "begins with 'vision.vit.block'; did you mean 'vision.vit.blocks"),
        (["qqqq"], "'qqqq'; the model has entry_gate, exit_gate, head, "),
        (["tex"], "did you mean 'text'"),
        (sorted({name.split(".")[0] for name, _ in build().named_parameters()}), "freezes the whole model"),
    ],
)
def test_what_cannot_be_frozen(prefixes: list[str], words: str) -> None:
    with pytest.raises(UserError) as raised:
        freeze(build(), prefixes)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("frozen", "options", "words"),
    [
        (["text"], {"text_lr_scale": 0.1}, "optim.text_lr_scale=0.1 has no effect: optim.freeze freezes all of 'text'"),
        (["vision"], {"image_lr_scale": 2.0}, "optim.image_lr_scale=2 has no effect"),
        (["vision", "text"], {"layer_decay": 0.7}, "optim.layer_decay=0.7 has no effect"),
    ],
)
def test_a_rate_of_what_is_frozen_is_refused(frozen: list[str], options: dict, words: str) -> None:
    model = build()
    freeze(model, frozen)
    with pytest.raises(UserError) as raised:
        lr_scales(model, OptimConfig(**options), SPEC)
    assert words in str(raised.value)
    assert set(lr_scales(model, OptimConfig(layer_decay=1.0), SPEC).values()) == {1.0}


def test_the_groups_are_described() -> None:
    model = build()
    freeze(model, ["text"])
    lines = describe_groups(model, parameter_groups(model, 5e-4, no_decay=SPEC.no_decay))
    assert [line.split()[:2] for line in lines[1:3]] == [["1", "x"]] * 2
    assert lines[1].split()[3] == "0.0005"
    assert lines[3].split()[0] == "frozen"
    counts = [int(line[46:].split()[0].replace(",", "")) for line in lines[1:4]]
    assert sum(counts) == sum(p.numel() for p in model.parameters())
    assert lines[4].startswith("no weight decay: ")
    assert "vision.low_group_LD, vision.high_group_GD, vision.vit.pos_embed" in lines[4]


def test_blocks_count_by_their_order_whatever_they_are_called() -> None:
    model = nn.ModuleDict({"tower": nn.ModuleDict({name: nn.Linear(2, 2) for name in ("stem", "2", "7")})})
    spec = replace(SPEC, image_encoder=Encoder("tower", "tower"), text_encoder=None)
    scales = lr_scales(model, OptimConfig(layer_decay=0.5), spec)
    assert {name.split(".")[1]: scale for name, scale in scales.items()} == {"stem": 0.25, "2": 0.5, "7": 1.0}
