"""What stays of the weights that ZeRO 3 gathers in a forward pass."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from mres.parallel.config import ParallelConfig
from mres.parallel.factory import build_strategy
from mres.parallel.strategy import AdamW, ParameterGroup
from mres.supervise.world import join_world, leave_world
from mres.testing import run_distributed

LAYERS, WIDTH, STEPS = 16, 64, 3


def chain() -> nn.Sequential:
    """Linear layers, of which autograd saves views, a normalisation, of which it saves the weight itself."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)), nn.LayerNorm(WIDTH))


def train(changes: dict[str, Any]) -> dict[str, Any]:
    """The losses of a few steps, how many layers' whole weights are in memory after the first forward pass, and whether
    masters are the very memory that weights are gathered from."""
    config = ParallelConfig.model_validate(changes)
    world = join_world(config.timeout_s)
    strategy = build_strategy(config, world)
    type(strategy).persist_below = 0  # type: ignore[attr-defined]
    model = chain()
    layers = [module for module in model if isinstance(module, nn.Linear)]
    gathered: list[StorageWeakRef] = []
    # Before DeepSpeed's own, which release what was gathered.
    hooks = [layer.register_forward_hook(lambda m, *_: gathered.append(_memory_of(m.weight))) for layer in layers]
    groups = [ParameterGroup(tuple(name for name, _ in model.named_parameters()), 0.1)]
    strategy.wrap(model, list(layers), groups, AdamW((0.9, 0.99), 1e-8, 1.0))
    found: dict[str, Any] = {"losses": []}
    for step in range(STEPS):
        input_BC = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(step))
        with strategy.micro_batch(last=True):
            loss = strategy.module(input_BC[world.rank :: world.size]).square().tanh().mean()
            found.setdefault("kept", sum(not memory.expired() for memory in gathered))
            strategy.backward(loss)
        for hook in hooks:
            hook.remove()
        strategy.step(1e-2)
        found["losses"].append(strategy.all_reduce_sum([loss.item()])[0] / world.size)
    found["pieces"] = _own_memory(
        [*strategy.masters(), *(p.ds_tensor for p in model.parameters() if hasattr(p, "ds_tensor"))]
    )
    leave_world()
    return found


def _memory_of(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())


def _own_memory(tensors: list[Tensor]) -> int:
    """Bytes of the memories that the tensors lie in, each counted once."""
    memories = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(memories.values())


ZERO_3 = {"strategy": "zero", "zero_stage": 3}


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run_distributed(train, 2, ZERO_3)


@pytest.mark.slow
def test_weights_are_gone_after_forward_and_there_in_backward(ranks: list[dict[str, Any]]) -> None:
    [single] = run_distributed(train, 1, {"strategy": "single"})
    assert single["kept"] == LAYERS, "the test sees memory that is kept"
    # As many as DeepSpeed may keep (stage3_max_live_parameters: two eighths of the model) and what it was at.
    assert all(rank["kept"] <= LAYERS // 4 + 2 for rank in ranks), [rank["kept"] for rank in ranks]
    for rank in ranks:
        assert rank["losses"] == pytest.approx(single["losses"], rel=1e-6)
    assert single["losses"][-1] < single["losses"][0]


@pytest.mark.slow
def test_in_float32_there_is_one_copy_of_a_ranks_weights(ranks: list[dict[str, Any]]) -> None:
    whole = 4 * sum(math.prod(p.shape) for p in chain().parameters())
    assert [rank["pieces"] for rank in ranks] == [whole // 2] * 2
    [half] = run_distributed(train, 1, {**ZERO_3, "compute_dtype": "bfloat16"})
    assert half["pieces"] == whole + whole // 2, "masters and what they are rounded to"
