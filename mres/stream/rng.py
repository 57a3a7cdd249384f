"""Keyed randomness: every draw of the stream depends on its key alone, never on a state that others share."""

import hashlib
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence


def rng(*key: int | str) -> np.random.Generator:
    """A random generator that depends on nothing but `key`, such as (seed, set, pass, image id, purpose)."""
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=32).digest()
    return np.random.Generator(np.random.PCG64(_Words(digest)))  # type: ignore[arg-type]  # its stub knows SeedSequence only


class _Words(ISeedSequence):
    """Hands a hash to a bit generator as its state. NumPy's own seeding would mix it once more, at five times the cost."""

    __slots__ = ("_digest",)

    def __init__(self, digest: bytes) -> None:
        self._digest = digest

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        return np.frombuffer(self._digest, dtype, n_words)
