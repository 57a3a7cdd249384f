"""Order does not depend on the number of processes."""

import math

import pytest

from mres.sources.parallel import in_order


@pytest.mark.parametrize(("count", "workers"), [(0, 1), (1, 2), (150, 2)])
def test_items_come_in_order(count: int, workers: int) -> None:
    assert list(in_order(math.factorial, count, workers)) == [math.factorial(i) for i in range(count)]


def test_an_error_in_a_worker_reaches_the_consumer() -> None:
    items = in_order(math.log, 3, 1)
    with pytest.raises(ValueError, match=r"math domain error|expected a positive"):
        list(items)
