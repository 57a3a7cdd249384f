"""Smaller masks."""

import numpy as np
import pytest

from mres.records import decode_masks, encode_mask
from mres.shards.resize import _shrink_masks


@pytest.mark.parametrize("factor", [2, 16, 23, 40, 100])
def test_no_mask_vanishes_and_none_appears(factor: int) -> None:
    whole_HW = np.zeros((16 * factor, 16 * factor), bool)
    pixel_HW, half_HW = whole_HW.copy(), whole_HW.copy()
    pixel_HW[5 * factor + 1, 3 * factor] = True
    half_HW[: 2 * factor, : factor + factor // 2 + factor % 2] = True
    small = decode_masks(_shrink_masks([encode_mask(one) for one in (whole_HW, pixel_HW, half_HW)], 16, 16))
    assert not small[0].any()
    assert np.argwhere(small[1]).tolist() == [[5, 3]]
    assert np.argwhere(small[2]).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
