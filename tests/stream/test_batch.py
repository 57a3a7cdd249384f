"""Token ids come from a model's own tokenizer, and are what is due or refused."""

import pytest
import torch
from torch import Tensor

from mres.errors import UserError
from mres.stream.batch import StreamShape, token_ids

SHAPE = StreamShape(32, 4, 5)


def test_integers_of_any_kind_become_int32() -> None:
    ids, num_cut = token_ids(lambda texts: (torch.arange(10).view(2, 5), 1), ["a", "b"], SHAPE)
    assert (ids.dtype, ids.flatten().tolist(), num_cut) == (torch.int32, list(range(10)), 1)


@pytest.mark.parametrize(
    "ids", [torch.zeros(2, 4), torch.zeros(2, 5), *(torch.zeros(s, dtype=torch.int64) for s in [(1, 5), (2, 1), (5,)])]
)
def test_what_would_be_spread_over_other_texts_is_refused(ids: Tensor) -> None:
    with pytest.raises(UserError, match=r"\(2, 5\) are due"):
        token_ids(lambda texts: (ids, 0), ["a", "b"], SHAPE)
