"""The one policy of types and kernels, and what a config may not combine."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mres.config import ConfigError, load_config
from mres.errors import UserError
from mres.parallel.config import ParallelConfig
from mres.parallel.precision import CastParameters, Precision, cast_inputs, set_backends


class Twice(nn.Module):
    """One weight under two names, a frozen one, and a part that backward computes again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.last = nn.Linear(4, 1).requires_grad_(False)
        self.seen: list[torch.dtype] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(checkpoint(self._twice, x, use_reentrant=False))

    def _twice(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(self.first.weight.dtype)
        assert self.first.weight is self.second.weight
        return self.second(self.first(x).relu())


@pytest.fixture
def model() -> Twice:
    torch.manual_seed(0)
    return Twice()


def rounded(model: nn.Module) -> nn.Module:
    copy = Twice()
    copy.load_state_dict(model.state_dict())
    copy.last.requires_grad_(False)
    return copy.bfloat16()


def test_lent_weights_are_the_rounded_ones_and_gradients_are_the_masters(model: Twice) -> None:
    x = torch.randn(3, 4)
    reference = rounded(model)
    reference(x.bfloat16()).sum().backward()
    names = [name for name, _ in model.named_parameters()]
    lent = CastParameters(model, torch.bfloat16)
    model.register_forward_pre_hook(cast_inputs(torch.bfloat16))
    model(x).sum().backward()
    lent.restore_masters()
    assert model.seen == [torch.bfloat16] * 2, "forward, and once more in backward"
    assert [name for name, _ in model.named_parameters()] == names
    assert all(type(p) is nn.Parameter and p.dtype == torch.float32 for p in model.parameters())
    assert model.first.weight.grad is not None
    assert model.first.weight.grad.dtype == torch.float32
    assert torch.equal(model.first.weight.grad, reference.first.weight.grad.float())  # type: ignore[union-attr,operator]
    assert model.last.weight.grad is None


def test_gradients_add_up_in_float32(model: Twice) -> None:
    lent = CastParameters(model, torch.bfloat16)
    model.register_forward_pre_hook(cast_inputs(torch.bfloat16))
    total = torch.zeros(4, 4)
    for scale in (1.0, 1e-3):
        x = torch.full((1, 4), scale)
        (alone,) = torch.autograd.grad(model(x).sum(), [lent._masters[0][2]])
        total += alone
        model(x).sum().backward()
        lent.restore_masters()
    assert torch.equal(model.first.weight.grad, total)  # type: ignore[arg-type]
    assert not torch.equal(total, total.bfloat16().float()), "the sum is no bfloat16"


def test_without_gradients_the_masters_are_back_at_once(model: Twice) -> None:
    CastParameters(model, torch.bfloat16)
    with torch.no_grad():
        out = model(torch.randn(2, 4).bfloat16())
    assert out.dtype == torch.bfloat16
    assert model.first.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("compute", "master"), [("float32", "float32"), ("bfloat16", "float32"), ("float64", "float64")]
)
def test_masters(compute: str, master: str) -> None:
    precision = Precision.of(ParallelConfig(strategy="ddp", compute_dtype=compute))  # type: ignore[arg-type]
    assert (precision.compute, precision.master) == (getattr(torch, compute), getattr(torch, master))
    assert str(precision) == f"{compute} over {master} masters"


@pytest.mark.parametrize(
    ("attention", "enabled"),
    [("math", (False, False)), ("flash", (True, False)), ("efficient", (False, True)), ("auto", (True, True))],
)
def test_kernels_and_tf32_are_what_the_config_says(attention: str, enabled: tuple[bool, bool]) -> None:
    backends = torch.backends
    device = torch.device("cuda" if attention == "efficient" else "cpu")
    try:
        for tf32 in (True, False):
            set_backends(ParallelConfig(tf32=tf32, attention=attention), device)  # type: ignore[arg-type]
            assert backends.cuda.matmul.allow_tf32 is backends.cudnn.allow_tf32 is tf32
        assert (backends.cuda.flash_sdp_enabled(), backends.cuda.mem_efficient_sdp_enabled()) == enabled
        assert backends.cuda.math_sdp_enabled()
    finally:
        set_backends(ParallelConfig(), torch.device("cpu"))


def test_a_kernel_that_the_device_lacks_is_refused() -> None:
    with pytest.raises(UserError, match=r"parallel\.attention=efficient has no kernel for a CPU"):
        set_backends(ParallelConfig(attention="efficient"), torch.device("cpu"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["strategy=zero", "compute_dtype=float64"], "DeepSpeed keeps its masters in float32"),
        (
            ["tf32=true", "compute_dtype=bfloat16"],
            "tf32=true has an effect with compute_dtype=float32 only, not with compute_dtype=bfloat16",
        ),
        (["strategy=zero", "offload=cpu", "compute_dtype=bfloat16"], "needs zero_stage=3, not 2"),
        (
            ["strategy=ddp", "offload=cpu"],
            "offload=cpu has an effect with strategy=fsdp or strategy=zero only, not with strategy=ddp",
        ),
        (["strategy=zero", "shard_ranks=2"], "shard_ranks=2 has an effect with strategy=fsdp only"),
        (["shard_ranks=0"], "Input should be greater than or equal to 1"),
    ],
)
def test_what_does_not_go_together(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [f"parallel.{override}" for override in overrides])
    assert words in str(caught.value)


def test_zero_3_offloads_in_bfloat16() -> None:
    overrides = ["strategy=zero", "offload=cpu", "compute_dtype=bfloat16", "zero_stage=3"]
    assert load_config(None, [f"parallel.{o}" for o in overrides]).parallel.offload == "cpu"
