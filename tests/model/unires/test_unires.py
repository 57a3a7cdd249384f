"""One image pass for K expressions is the same as K pairs; padding weighs nothing; everything learns."""

import ast
from pathlib import Path

import pytest
import torch
from tiny_model import VARIANTS, build, inputs

import mres.model
from mres.model.unires.unires import UniRES


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@torch.no_grad()
def test_k_expressions_in_one_pass_are_k_separate_pairs(variant: str, dtype: torch.dtype, tolerance: float) -> None:
    model = build(dtype=dtype, **VARIANTS[variant])
    image_BCSS, text_BKT = inputs(dtype=dtype)
    together_BKhh = model(image_BCSS, text_BKT)
    side = 32 // model_stride(model)
    assert together_BKhh.shape == (2, 3, side, side)
    for b in range(2):
        for k in range(3):
            alone_hh = model(image_BCSS[b : b + 1], text_BKT[b : b + 1, k : k + 1])[0, 0]
            assert torch.allclose(alone_hh, together_BKhh[b, k], rtol=tolerance, atol=tolerance)
    assert (together_BKhh[:, 0] - together_BKhh[:, 1]).abs().max() > 100 * tolerance, "the text matters"
    assert (together_BKhh[0] - together_BKhh[1]).abs().max() > 100 * tolerance, "and so does the image"


def model_stride(model: UniRES) -> int:
    return 8 // model.head.ratio


@torch.no_grad()
def test_the_order_of_expressions_is_the_order_of_masks() -> None:
    model = build(dtype=torch.float64)
    image_BCSS, text_BKT = inputs(dtype=torch.float64)
    order = [2, 0, 1]
    assert torch.allclose(model(image_BCSS, text_BKT[:, order]), model(image_BCSS, text_BKT)[:, order], atol=1e-12)


def shorter(model: UniRES, length: int, **changes) -> UniRES:
    """The same model for texts of fewer tokens."""
    state = model.state_dict()
    state["text.tower.positional_embedding"] = state["text.tower.positional_embedding"][:length]
    short = build(dtype=torch.float64, text_length=length, **changes)
    short.load_state_dict(state)
    return short


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_padding_weighs_nothing(variant: str) -> None:
    """Neither how much of it there is, nor what stands there (any id below that of the end of text)."""
    model = build(dtype=torch.float64, **VARIANTS[variant])
    image_BCSS, text_BKT = inputs(length=10, dtype=torch.float64)
    expected = shorter(model, 10, **VARIANTS[variant])(image_BCSS, text_BKT)
    longer_BKT = torch.cat([text_BKT, torch.zeros(2, 3, 4, dtype=torch.int32)], dim=-1)
    assert torch.allclose(model(image_BCSS, longer_BKT), expected, atol=1e-12)
    behind_BKT = torch.arange(14) > longer_BKT.argmax(-1, keepdim=True)
    garbage_BKT = torch.where(behind_BKT, torch.randint(1, 1022, (2, 3, 14), dtype=torch.int32), longer_BKT)
    assert (garbage_BKT != longer_BKT).any()
    assert torch.allclose(model(image_BCSS, garbage_BKT), expected, atol=1e-12)
    changed_BKT = torch.where(behind_BKT | (longer_BKT >= 1022), longer_BKT, 5)
    assert not torch.allclose(model(image_BCSS, changed_BKT), expected, atol=1e-3), "while words do"


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_learns(variant: str) -> None:
    """A parameter without a gradient would break DDP, and be weight that does nothing."""
    model = build(**VARIANTS[variant]).train()
    (model(*inputs()) ** 2).mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # Softmax is blind to what it adds to all keys alike.
    assert [name for name in without if not name.endswith("attention.key.bias")] == []


def test_the_same_seed_is_the_same_model() -> None:
    one, other, third = build(0).state_dict(), build(0).state_dict(), build(1).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["low_project.weight"], third["low_project.weight"])


@torch.no_grad()
def test_dropout_acts_in_training_only() -> None:
    model = build(dropout=0.5)
    image_BCSS, text_BKT = inputs()
    assert torch.equal(model(image_BCSS, text_BKT), model(image_BCSS, text_BKT))
    model.train()
    assert not torch.equal(model(image_BCSS, text_BKT), model(image_BCSS, text_BKT))


def test_blocks_cover_the_layers_once() -> None:
    for changes, filters in (({}, 2), ({"filter_shared": True}, 1)):
        model = build(vision_depth=3, text_depth=2, stage1_layers=2, stage2_layers=3, **changes)
        blocks = model.blocks()
        assert len(blocks) == 3 + 2 + filters + 2 + 3
        parameters = [id(p) for block in blocks for p in block.parameters()]
        assert len(set(parameters)) == len(parameters), "no parameter is in two blocks"
        assert set(parameters) <= {id(p) for p in model.parameters()}


def test_bfloat16_runs_and_stays_near() -> None:
    model = build()
    image_BCSS, text_BKT = inputs()
    with torch.no_grad():
        expected = model(image_BCSS, text_BKT)
        with torch.autocast("cpu", torch.bfloat16):
            found = model(image_BCSS, text_BKT)
    assert (found.float() - expected).abs().max() < 0.1 * expected.abs().max()


def test_no_name_of_torch_distributed_in_the_model() -> None:
    """Blocks to shard are given as data; the model knows no rank."""
    modules = sorted(Path(mres.model.__path__[0]).glob("*.py"))
    assert len(modules) > 5
    for path in modules:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{name}" for name in names]
            if isinstance(node, ast.Attribute):
                names = [ast.unparse(node)]
            assert not [n for n in names if n.startswith(("torch.distributed", "mres.parallel", "mres.train"))], path
