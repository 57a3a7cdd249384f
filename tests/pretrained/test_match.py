"""A model's buffers come with its weights."""

import pytest
import torch
from torch import nn

from mres.errors import UserError
from mres.pretrained.match import Matched, copy_into, fit


def model() -> nn.Module:
    norm = nn.BatchNorm1d(3)
    norm.register_buffer("hidden", torch.zeros(2), persistent=False)
    return nn.Sequential(nn.Linear(3, 3), norm)


def test_persistent_buffers_are_taken_and_missed() -> None:
    target, values = model(), {name: torch.full_like(tensor, 5) for name, tensor in model().state_dict().items()}
    shapes = {name: value.shape for name, value in values.items()}
    found = fit(target, shapes, "a file")
    copy_into(target, Matched(found.restored, values.items(), found.own_names))
    assert all(torch.equal(tensor, values[name]) for name, tensor in target.state_dict().items())
    assert target[1].num_batches_tracked.dtype == torch.int64
    del shapes["1.running_mean"]
    with pytest.raises(UserError, match=r"1 tensors are missing \['1\.running_mean'\]"):
        fit(target, shapes, "a file")
