"""BatchNorm over the images of all ranks: a model computes the same on any number of them.

torch's own SyncBatchNorm refuses tensors of a CPU, and so do its other BatchNorms bfloat16 weights beside float32
statistics. Each micro-batch is normalised by itself: with `train.accumulate` statistics are those of fewer images.

Shapes: B images, C channels, * any more dimensions.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mres.errors import UserError


def synchronise_batch_norms(model: nn.Module, num_ranks: int) -> None:
    """Gives every BatchNorm of `model` a forward pass over all ranks' images; modules, parameters and names stay.

    Raises:
        UserError: one with a forward pass of its own, which would see the images of one rank alone.
    """
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm):
            continue
        if type(module).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward):
            module.forward = partial(_forward, module, num_ranks)  # type: ignore[method-assign]
        elif num_ranks > 1:
            raise UserError(
                f"'{name}' is a BatchNorm with a forward pass of its own ({type(module).__name__}), which would normalise "
                f"over each of {num_ranks} ranks' images by themselves; put a plain torch.nn.BatchNorm into the model and "
                "the rest after it, or train on one rank"
            )


def _forward(norm: _BatchNorm, num_ranks: int, x_BCs: Tensor) -> Tensor:
    norm._check_input_dim(x_BCs)
    mean_C, var_C = norm.running_mean, norm.running_var
    dtype = torch.promote_types(x_BCs.dtype, torch.float32) if mean_C is None else mean_C.dtype
    weight_C, bias_C = (None if p is None else p.to(dtype) for p in (norm.weight, norm.bias))
    if not norm.training:
        return F.batch_norm(x_BCs, mean_C, var_C, weight_C, bias_C, training=mean_C is None, eps=norm.eps)
    if num_ranks == 1 and x_BCs.numel() == x_BCs.shape[1]:
        raise UserError(
            f"a BatchNorm of {x_BCs.shape[1]} channels is given one value of each, which has no variance: more images or "
            "expressions a step are due (data.images_per_batch, data.expressions_per_image, or less train.accumulate)"
        )
    normalise = _over_one_rank if num_ranks == 1 else _over_ranks
    y_BCs, mean_C, var_C = normalise(x_BCs, weight_C, bias_C, norm.eps, dtype)
    _track(norm, mean_C, var_C)
    return y_BCs


@torch.no_grad()
def _track(norm: _BatchNorm, mean_C: Tensor, var_C: Tensor) -> None:
    """Moves the running statistics; what is not finite belongs to a step that will be skipped, and would stay for ever."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    for running_C, new_C in ((norm.running_mean, mean_C), (norm.running_var, var_C)):
        running_C.copy_(torch.where(torch.isfinite(new_C), running_C.lerp(new_C, momentum), running_C))


# Normalised values, and mean and unbiased variance of what they were normalised over.
_Normalised = tuple[Tensor, Tensor, Tensor]


def _over_one_rank(
    x_BCs: Tensor, weight_C: Tensor | None, bias_C: Tensor | None, eps: float, dtype: torch.dtype
) -> _Normalised:
    mean_C, var_C = torch.zeros(2, x_BCs.shape[1], dtype=dtype, device=x_BCs.device)
    y_BCs = F.batch_norm(x_BCs, mean_C, var_C, weight_C, bias_C, training=True, momentum=1.0, eps=eps)
    return y_BCs, mean_C, var_C


def _over_ranks(
    x_BCs: Tensor, weight_C: Tensor | None, bias_C: Tensor | None, eps: float, dtype: torch.dtype
) -> _Normalised:
    """The mean first, and then the squares around it, so that nothing cancels."""
    num_channels = x_BCs.shape[1]
    dims = [dim for dim in range(x_BCs.dim()) if dim != 1]
    shape = [num_channels if dim == 1 else 1 for dim in range(x_BCs.dim())]
    y_BCs = x_BCs.to(dtype)
    num = y_BCs.new_full((1,), x_BCs.numel() / num_channels)
    sum_C, num = _SumOverRanks.apply(torch.cat([y_BCs.sum(dims), num])).split([num_channels, 1])
    mean_C = sum_C / num
    y_BCs = y_BCs - mean_C.view(shape)
    square_C = _SumOverRanks.apply(y_BCs.square().sum(dims))
    y_BCs = y_BCs * (square_C / num + eps).rsqrt().view(shape)
    if weight_C is not None:
        y_BCs = y_BCs * weight_C.view(shape)
    if bias_C is not None:
        y_BCs = y_BCs + bias_C.view(shape)
    return y_BCs.to(x_BCs.dtype), mean_C, square_C / (num - 1)


class _SumOverRanks(torch.autograd.Function):
    """The same on every rank; each rank's share has part in every rank's loss, so gradients are summed as well."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return _all_reduced(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _all_reduced(gradient)


@torch.compiler.disable
def _all_reduced(tensor: Tensor) -> Tensor:
    total = tensor.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total
