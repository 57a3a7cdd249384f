"""How a checkpoint's work is divided."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from mres.parallel.zero_state import assign_owners, chunked

shape_lists = st.lists(st.lists(st.integers(0, 40), max_size=3), max_size=30)


def shapes_of(sizes: list[list[int]]) -> dict[str, torch.Size]:
    return {f"p{number}": torch.Size(size) for number, size in enumerate(sizes)}


@given(sizes=shape_lists, world_size=st.integers(1, 9))
def test_every_parameter_has_one_owner_and_none_much_more_than_another(sizes: list[list[int]], world_size: int) -> None:
    shapes = shapes_of(sizes)
    owners = assign_owners(shapes, world_size)
    assert owners.keys() == shapes.keys()
    loads = [sum(shapes[n].numel() for n, owner in owners.items() if owner == rank) for rank in range(world_size)]
    assert sum(loads) == sum(shape.numel() for shape in shapes.values())
    assert max(loads) - min(loads) <= max((shape.numel() for shape in shapes.values()), default=0)
    assert assign_owners(dict(reversed(shapes.items())), world_size) == owners, "all ranks must come to the same"


@given(sizes=shape_lists, num_bytes=st.integers(0, 5000))
def test_chunks_are_bounded_and_lose_nothing(sizes: list[list[int]], num_bytes: int) -> None:
    shapes = shapes_of(sizes)
    chunks = list(chunked(shapes, num_bytes))
    assert [name for chunk in chunks for name in chunk] == list(shapes)
    assert all(len(c) == 1 or 4 * sum(shapes[n].numel() for n in c) <= num_bytes for c in chunks)
