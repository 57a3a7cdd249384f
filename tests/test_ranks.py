"""What a config asks of the number of ranks."""

import pytest

from mres.config import load_config
from mres.errors import UserError
from mres.ranks import check_ranks
from mres.shards import driver

REMOTE = "data.train=s3://bucket/set"


@pytest.mark.parametrize(
    ("overrides", "size", "local_size"),
    [
        ("parallel.strategy=single", 1, None),
        ("parallel.shard_ranks=8", 16, 8),
        ("parallel.shard_ranks=4", 8, None),  # a launcher that says nothing of machines: they are one
        ("data.images_per_batch=12 train.accumulate=2", 6, 3),
        (f"{REMOTE}", 8, 8),
        (f"{REMOTE} parallel.timeout_s=60", 1, 1),  # nobody waits for it
        ("data.train=folder parallel.timeout_s=60", 8, 8),
        ("data.train=folder data.val=s3://bucket/val parallel.timeout_s=60", 8, 8),  # read by launch/evaluate.py alone
        (f"{REMOTE} parallel.timeout_s=60 data.remote_retries=1 data.remote_timeout_s=10", 8, 8),
    ],
)
def test_what_fits(overrides: str, size: int, local_size: int | None) -> None:
    check_ranks(load_config(None, overrides.split()), size, local_size)


@pytest.mark.parametrize(
    ("overrides", "size", "words"),
    [
        ("parallel.strategy=single", 2, "parallel.strategy=single runs on one rank and was launched on 2"),
        ("parallel.shard_ranks=3", 8, "parallel.shard_ranks=3 does not divide the 8 ranks"),
        ("data.images_per_batch=12", 8, "data.images_per_batch=12 cannot be split among 8 ranks"),
        ("data.images_per_batch=24 train.accumulate=2", 8, "train.accumulate=2 does not divide a rank's 3 images"),
        (f"{REMOTE} parallel.timeout_s=186", 8, "set parallel.timeout_s above 186, or lower one of the other two"),
        ("data.train=[folder,s3://bucket/set] parallel.timeout_s=60", 8, "data.remote_timeout_s=30 a try"),
        ("data.train=folder data.val=s3://b/v evaluate.every=5 parallel.timeout_s=60", 8, "data.remote_retries=5"),
    ],
)
def test_what_does_not(overrides: str, size: int, words: str) -> None:
    with pytest.raises(UserError) as caught:
        check_ranks(load_config(None, overrides.split()), size, size)
    assert words in str(caught.value)


@pytest.mark.parametrize("retries", [0, 1, 4, 12])
def test_the_longest_wait_covers_all_attempts_and_pauses(retries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts, slept = [], []

    def attempt() -> None:
        attempts.append(None)
        raise TimeoutError("no answer within 3 s")

    monkeypatch.setattr(driver.time, "sleep", slept.append)
    with pytest.raises(UserError, match="attempt"):
        driver.Driver("memory://set", 3, retries, lambda: None)._retried("memory://set/a", "", attempt)
    pauses_s = driver.longest_wait_s(3, retries) - 3 * len(attempts)
    assert sum(slept) <= pauses_s + 1e-9, "each pause is drawn between a half and the whole of its longest"
    assert pauses_s <= 2 * sum(slept) + 1e-9


def test_many_retries_take_the_longest_pause_each() -> None:
    assert driver.longest_wait_s(1, 10**9) == pytest.approx(21 * 10**9, rel=1e-6)
