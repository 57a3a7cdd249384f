"""BatchNorm over all ranks' images is BatchNorm of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mres.errors import UserError
from mres.parallel.batch_norm import synchronise_batch_norms
from mres.supervise.world import join_world, leave_world
from mres.testing import run_distributed

IMAGES = 6


def norm() -> nn.BatchNorm2d:
    torch.manual_seed(0)
    made = nn.BatchNorm2d(3, dtype=torch.float64)
    nn.init.normal_(made.weight)
    return made


def passed(module: nn.Module, x_BCHW: Tensor, rank: int, size: int) -> dict[str, Any]:
    x_BCHW = x_BCHW.chunk(size)[rank].clone().requires_grad_()
    y_BCHW = module(x_BCHW)
    y_BCHW.pow(3).sum().backward()
    return {"y": y_BCHW.detach(), "gradient": x_BCHW.grad, "weight": module.weight.grad, "state": module.state_dict()}  # type: ignore[union-attr]


def images() -> Tensor:
    return 100 + torch.randn(IMAGES, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def of_rank(folder: Path) -> None:
    world = join_world(60)
    module = nn.Sequential(norm())
    synchronise_batch_norms(module, world.size)
    torch.save(passed(module[0], images(), world.rank, world.size), folder / f"{world.rank}.pt")
    leave_world()


def test_values_gradients_and_statistics_are_those_of_one_process(tmp_path: Path) -> None:
    run_distributed(of_rank, 2, tmp_path)
    one, ranks = passed(norm(), images(), 0, 1), [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for name in ("y", "gradient"):
        assert torch.allclose(torch.cat([rank[name] for rank in ranks]), one[name], rtol=1e-9, atol=1e-9), name
    assert torch.allclose(sum(rank["weight"] for rank in ranks), one["weight"])
    for rank in ranks:
        assert all(torch.allclose(rank["state"][name], value) for name, value in one["state"].items())


def test_alone_it_is_torchs_to_the_bit_and_takes_what_torch_refuses() -> None:
    module = nn.Sequential(norm())
    synchronise_batch_norms(module, 1)
    one, other = passed(norm(), images(), 0, 1), passed(module[0], images(), 0, 1)
    assert torch.equal(one["y"], other["y"])
    assert torch.equal(one["gradient"], other["gradient"])
    half = nn.Sequential(nn.BatchNorm1d(4), nn.SyncBatchNorm(4))
    synchronise_batch_norms(half, 1)
    for parameter in half.parameters():
        parameter.data = parameter.data.bfloat16()
    assert half(torch.randn(5, 4).bfloat16()).dtype == torch.bfloat16
    assert half[0].running_mean.dtype == torch.float32


def test_a_bad_step_does_not_stay_in_the_statistics() -> None:
    module = nn.Sequential(norm())
    synchronise_batch_norms(module, 1)
    module(images())
    before = module[0].running_mean.clone()
    module(images() * float("nan"))
    assert torch.equal(module[0].running_mean, before)


class Own(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def test_one_with_a_forward_pass_of_its_own_is_refused_on_several_ranks() -> None:
    model = nn.ModuleDict({"stem": Own(3)})
    synchronise_batch_norms(model, 1)
    with pytest.raises(UserError, match=r"'stem' is a BatchNorm with a forward pass of its own \(Own\)"):
        synchronise_batch_norms(model, 2)
