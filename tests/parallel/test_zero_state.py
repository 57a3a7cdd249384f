"""How the work of loading is divided."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from mres.parallel.zero.state import chunked

shape_lists = st.lists(st.lists(st.integers(0, 40), max_size=3), max_size=30)


def shapes_of(sizes: list[list[int]]) -> dict[str, torch.Size]:
    return {f"p{number}": torch.Size(size) for number, size in enumerate(sizes)}


@given(sizes=shape_lists, num_bytes=st.integers(0, 5000))
def test_chunks_are_bounded_and_lose_nothing(sizes: list[list[int]], num_bytes: int) -> None:
    shapes = shapes_of(sizes)
    chunks = list(chunked(shapes, num_bytes))
    assert [name for chunk in chunks for name in chunk] == list(shapes)
    assert all(len(c) == 1 or 4 * sum(shapes[n].numel() for n in c) <= num_bytes for c in chunks)
