"""Floats from one width to another, rounded as torch rounds them: to the nearest, of two the even one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

HALF = ("bfloat16", "float16")
CASTABLE = ("float64", "float32", *HALF)
_PIECE = 1 << 18  # elements at a time, so that nothing between the two takes memory


def cast_into(source: memoryview, dtype: str, target: memoryview, target_dtype: str) -> None:
    """Fills `target` with the elements of `source`; both types are in `CASTABLE`."""
    given, out = _elements(source, dtype), _elements(target, target_dtype)
    assert len(given) == len(out)
    for at in range(0, len(given), _PIECE):
        values = given[at : at + _PIECE]
        values = _widened(values) if dtype == "bfloat16" else values
        with np.errstate(over="ignore", invalid="ignore"):  # too large for half precision is infinite, as in torch
            values = values if target_dtype == "float64" else values.astype(np.float32, copy=False)
            out[at : at + _PIECE] = _narrowed(values) if target_dtype == "bfloat16" else values


def _elements(memory: memoryview, dtype: str) -> NDArray[Any]:
    return np.frombuffer(memory, np.uint16 if dtype == "bfloat16" else np.dtype(dtype))


def _widened(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16 is the upper half of float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _narrowed(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)
