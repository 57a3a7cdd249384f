"""SHA-256 of every record of a set, in a file beside the index: a store or a cache can forge a CRC, but not these.

Legend: N records; 32 bytes of a SHA-256.
"""

import hashlib
from pathlib import Path

import numpy as np

from mres.shards.index import write_index

DIGESTS_NAME = "digests.npy"
_BYTES = 32


def record_digests(path: Path, index_N: np.ndarray) -> np.ndarray:
    """uint8 (N, 32), of the records that `index_N` finds in the shard at `path`."""
    digests_N32 = np.zeros((len(index_N), _BYTES), np.uint8)
    with path.open("rb") as file:
        for row, digest in zip(index_N, digests_N32, strict=True):
            file.seek(int(row["offset"]))
            digest[:] = np.frombuffer(hashlib.sha256(file.read(int(row["size"]))).digest(), np.uint8)
    return digests_N32


def keep_digests(shard: Path, index_N: np.ndarray) -> None:
    """Computes them for a finished shard of a set that is being built, and writes them beside it."""
    write_index(_beside(shard), record_digests(shard, index_N))


def kept_digests(shard: Path, index_N: np.ndarray) -> np.ndarray:
    """What `keep_digests` wrote; computed, where an earlier version began the build."""
    path = _beside(shard)
    return np.load(path, allow_pickle=False) if path.exists() else record_digests(shard, index_N)


def _beside(shard: Path) -> Path:
    return shard.with_name(f"{shard.name}.{DIGESTS_NAME}")
