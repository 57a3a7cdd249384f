"""Blocks that are recomputed, compiled, or both: the same losses, gradients and names, and less kept."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
import toy_training as toy
from tiny_model import outline
from torch import Tensor, nn

from mres.model.unires.unires import UniRES
from mres.parallel.blocks import prepare_blocks
from mres.parallel.config import ParallelConfig
from mres.testing import run_distributed


def options(**changes: object) -> ParallelConfig:
    return ParallelConfig.model_validate({"strategy": "single", **changes})


def model_of(dropout: float, **changes: object) -> UniRES:
    """A model with several layers of each kind, prepared."""
    config = toy.model_config().model_copy(update={"dropout": dropout, "stage2_layers": 2})
    torch.manual_seed(0)
    model = UniRES(config).train()
    prepare_blocks(model.blocks(), options(**changes))
    return model


def step(model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss, and gradients by name."""
    torch.manual_seed(1)  # dropout's
    image_BCSS, text_BKT, *_ = toy.batch(0)
    loss = (model(image_BCSS, text_BKT) ** 2).mean()
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["block", "selective"])
def test_recomputing_changes_no_bit(kind: str, dropout: float) -> None:
    expected_loss, expected = step(model_of(dropout))
    loss, gradients = step(model_of(dropout, activation_checkpointing=kind))
    assert torch.equal(loss, expected_loss)
    assert list(gradients) == list(expected)
    assert [name for name in expected if not torch.equal(gradients[name], expected[name])] == []


class Fading(nn.Module):
    """What it computes depends on how often it was called."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.fc, self.in_place = nn.Linear(3, 3), in_place
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x_BC: Tensor) -> Tensor:
        self.calls = self.calls.add_(1) if self.in_place else self.calls + 1
        return (self.fc(x_BC) / float(self.calls)).tanh()


@pytest.mark.parametrize("kind", ["block", "selective"])
@pytest.mark.parametrize("in_place", [True, False])
def test_the_second_pass_sees_the_buffers_that_the_first_one_found(kind: str, in_place: bool) -> None:
    found = []
    for changes in ({}, {"activation_checkpointing": kind}):
        torch.manual_seed(0)
        block = Fading(in_place=in_place)
        prepare_blocks([block], options(**changes))
        block(block(torch.ones(2, 3))).sum().backward()
        found.append((block.fc.weight.grad, block.calls))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1] == 2


def test_dropout_was_drawn() -> None:
    assert not torch.equal(step(model_of(0.3))[0], step(model_of(0.0))[0])


def kept_bytes(model: nn.Module) -> int:
    """Of the tensors that autograd keeps between forward and backward, each once, weights left out."""
    seen = {p.untyped_storage().data_ptr(): 0 for p in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        seen.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(*toy.batch(0)[:2])
    assert output.requires_grad
    return sum(seen.values())


def test_recomputing_keeps_less() -> None:
    nothing, block = (kept_bytes(model_of(0.0, activation_checkpointing=kind)) for kind in ("none", "block"))
    assert block < 0.6 * nothing


def count_products(run: Callable[[], object]) -> int:
    """Products and attention that `run` computes."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            name = operation.name()
            Counter.count += name.startswith(("aten::mm", "aten::addmm", "aten::bmm")) or "flash_attention" in name
            return operation(*args, **(kwargs or {}))

    with Counter():
        run()
    return Counter.count


def test_selective_computes_no_product_again_and_block_does() -> None:
    none, selective, block = (
        count_products(lambda kind=kind: step(model_of(0.0, activation_checkpointing=kind)))
        for kind in ("none", "selective", "block")
    )
    assert selective == none
    assert block > 1.2 * none


def test_names_and_modules_stay() -> None:
    plain, prepared = model_of(0.0), model_of(0.0, activation_checkpointing="block", compile=True)
    assert list(prepared.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in prepared.named_modules()] == [n for n, _ in plain.named_modules()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["none", pytest.param("selective", marks=pytest.mark.exhaustive)])
def test_compiled_blocks_compute_the_same(kind: str) -> None:
    """With dropout, too, and without advice; the two layers share what was compiled."""
    expected_loss, expected = step(model_of(0.3))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = model_of(0.3)
    prepare_blocks(model.stage2, options(activation_checkpointing=kind, compile=True))
    heard: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = heard.append  # type: ignore[method-assign]
    logging.getLogger("torch._higher_order_ops.wrap").addHandler(handler)
    loss, gradients = step(model)
    assert [record.getMessage() for record in heard] == []
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradients, expected, rtol=1e-3, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


VARIANTS = {
    "ddp": {},
    "ddp, block": {"activation_checkpointing": "block"},
    "fsdp, block": {"strategy": "fsdp", "activation_checkpointing": "block"},
    "fsdp, selective": {"strategy": "fsdp", "activation_checkpointing": "selective"},
    "zero 2, selective": {"strategy": "zero", "zero_stage": 2, "activation_checkpointing": "selective"},
    "zero 3, block": {"strategy": "zero", "zero_stage": 3, "activation_checkpointing": "block"},
    "fsdp, bfloat16": {"strategy": "fsdp", "compute_dtype": "bfloat16"},
    "fsdp, bfloat16, block": {"strategy": "fsdp", "compute_dtype": "bfloat16", "activation_checkpointing": "block"},
}


def train_all() -> dict[str, list[float]]:
    """Two ranks, dropout on: losses of three steps under every variant."""
    from mres.model.initial import initial_weights
    from mres.parallel.factory import build_strategy
    from mres.supervise.world import join_world, leave_world
    from mres.train.optim import parameter_groups

    world = join_world(ParallelConfig(strategy="ddp").timeout_s)
    losses = {}
    for name, changes in VARIANTS.items():
        model = outline(toy.model_config().model_copy(update={"dropout": 0.3}))
        weights = initial_weights(model, 0)
        strategy = build_strategy(options(**{"strategy": "ddp", **changes}), world)
        type(strategy).own_unit_from = type(strategy).persist_below = 1000  # type: ignore[attr-defined]
        strategy.wrap(model, model.blocks(), parameter_groups(model, 0.05), toy.ADAMW)
        strategy.load_weights(weights)
        torch.manual_seed(world.rank)
        losses[name] = toy.train(strategy, range(3)).losses
    leave_world()
    return losses


@pytest.mark.slow
@pytest.mark.exhaustive
def test_every_strategy_recomputes() -> None:
    losses = run_distributed(train_all, 2)[0]
    assert losses["ddp, block"] == losses["ddp"]
    assert losses["fsdp, bfloat16, block"] == losses["fsdp, bfloat16"]
    for name, found in losses.items():
        assert found == pytest.approx(losses["ddp"], rel=1e-6 if "bfloat16" not in name else 0.02), name


@pytest.mark.parametrize("changes", [{"activation_checkpointing": "selective"}, {"compile": True}])
def test_what_stage_3_cannot_is_refused(changes: dict) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(changes))}=.* zero_stage=3, .*strategy=fsdp"):
        options(strategy="zero", zero_stage=3, **changes)
    options(strategy="zero", zero_stage=2, **changes)
