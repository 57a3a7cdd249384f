"""Bench of memory: what a data worker holds at 32M targets, whether it grows, and what a kill leaves behind."""

import argparse
import multiprocessing
import os
import re
import time
from collections.abc import Generator
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
from torch.utils.data import DataLoader

from benchmarks.claim import claim
from benchmarks.synthetic import TARGETS, made_source
from mres.errors import UserError
from mres.model.text import Tokenizer
from mres.model.unires.config import UniresConfig
from mres.shards.index import INDEX_NAME, write_index
from mres.shards.manifest import MANIFEST_NAME, Counts, IndexFile, Manifest, make_manifest
from mres.shards.reader import BLOCK_RECORDS
from mres.shards.writer import WriteOptions, write_shards
from mres.stream.batch import Batch, StreamShape
from mres.stream.config import DataConfig
from mres.stream.loader import TrainingStream
from mres.stream.sets import TrainingSets

_WORKERS = 2
_DIFFERENT = 2048  # records on disk; the index names each of them often
_SHARD_RECORDS = 8 * BLOCK_RECORDS
_SHM = Path("/dev/shm")
_PATIENCE_S = 60.0


def footprint(arguments: argparse.Namespace) -> dict[str, Any]:
    """Reads a set of `num_images` with two workers and compares them with workers that load nothing.

    Raises:
        UserError: fewer than ten batches, of which the first tenth is compared with the last.
    """
    if arguments.batches < 10:
        raise UserError(f"--batches {arguments.batches} must be at least 10: the first tenth is compared with all")
    idle = _idle()
    with TemporaryDirectory(prefix="mres-bench-") as folder:
        made = made_set(Path(folder) / "set", arguments.num_images)
        stream = _stream(made, arguments)
        early, late = _while_reading(stream, arguments.batches)
        left = _left_by_a_kill(stream)
    above = {name: late[name] - idle[name] for name in idle}
    grown = {name: late[name] - early[name] for name in idle}
    return {
        "bench": "memory",
        "what": f"{len(stream.sets[0])} images with {TARGETS} targets each, {_WORKERS} workers, {arguments.batches} "
        f"batches of {arguments.images} read; MB, mean of the workers",
        "a worker that loads nothing, same modules": idle,
        "a worker after a tenth of the batches": early,
        "a worker after all of them": late,
        "above a worker that loads nothing": above,
        "grown from a tenth to all": grown,
        "left by kill -9": left,
        "claims": {
            "PSS above, MB": claim(above["PSS"], "<=", 300),
            "USS above, MB": claim(above["USS"], "<=", 300),
            "names in /dev/shm left by kill -9": claim(left["names in /dev/shm"], "<=", 0),
        },
    }


def made_set(folder: Path, num_images: int) -> Path:
    """A set of `num_images`, of which at most 2048 lie on disk: rows of its index repeat. All else is as of any set."""
    different = min(num_images, _DIFFERENT)
    options = WriteOptions(images_per_shard=_SHARD_RECORDS, workers=2)
    manifest = write_shards(made_source(different), folder, options)
    index_N = np.load(folder / INDEX_NAME)
    share = np.full(len(manifest.shards), num_images // len(manifest.shards))
    share[: num_images % len(share)] += 1
    parts = [np.resize(index_N[index_N["shard"] == number], count) for number, count in enumerate(share)]
    write_index(folder / INDEX_NAME, np.concatenate(parts))
    shards = [s.model_copy(update={"records": int(n)}) for s, n in zip(manifest.shards, share, strict=True)]
    index = IndexFile.of(folder / INDEX_NAME)
    counts = _scaled(manifest, num_images / different)
    repeated = make_manifest(manifest.source, manifest.options, counts, index, shards)
    (folder / MANIFEST_NAME).write_bytes(repeated.to_bytes())
    return folder


def _scaled(manifest: Manifest, times: float) -> Counts:
    """All counts so many times as large."""

    def scaled(value: Any) -> Any:
        return {key: scaled(v) for key, v in value.items()} if isinstance(value, dict) else round(value * times)

    return Counts.model_validate(scaled(manifest.counts.model_dump()))


def _stream(folder: Path, arguments: argparse.Namespace) -> TrainingStream:
    model = UniresConfig.model_validate({"size": arguments.size})
    config = DataConfig(
        train=str(folder),
        images_per_batch=arguments.images,
        expressions_per_image=arguments.k,
        workers=_WORKERS,
    )
    shape = StreamShape(model.image_size, model.mask_stride, model.text_length)
    tokenize = Tokenizer(model.text_vocab_size, model.text_length)
    return TrainingStream(TrainingSets.open(config), config, shape, tokenize, seed=0, rank=0, world_size=1)


def _idle() -> dict[str, float]:
    """Workers of a loader of numbers, in a process that has imported all that a stream needs and opened nothing."""
    import open_clip  # noqa: F401
    import simplejpeg  # noqa: F401

    loader = iter(DataLoader(list(range(100)), num_workers=_WORKERS, batch_size=1))  # type: ignore[arg-type]
    next(loader)
    found = _workers_memory()
    del loader
    return found


def _while_reading(stream: TrainingStream, batches: int) -> tuple[dict[str, float], dict[str, float]]:
    """Memory of the workers after a tenth of the batches, and after the last that keeps them all at work."""
    reading = _endless(stream)
    for _ in range(batches // 10):
        next(reading)
    early = _workers_memory()
    for _ in range(batches - batches // 10):
        next(reading)
    late = _workers_memory()
    reading.close()
    return early, late


def _endless(stream: TrainingStream) -> Generator[Batch, None, None]:
    yield from stream.batches(0, 10**9)


def _workers_memory() -> dict[str, float]:
    """MB of this process's children, the mean: all that is theirs alone (USS), and with their share of the rest (PSS)."""
    found = [child.memory_full_info() for child in psutil.Process().children()]
    return {"USS": fmean(f.uss for f in found) / 1e6, "PSS": fmean(f.pss for f in found) / 1e6}


def _left_by_a_kill(stream: TrainingStream) -> dict[str, float]:
    """Kills a process in the middle of reading; what is left in /dev/shm of its and its workers', and whether these end."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_read_for_ever, args=(stream, theirs))
    process.start()
    workers = [psutil.Process(pid) for pid in ours.recv()]
    held = _shared_files([psutil.Process(process.pid), *workers])
    process.kill()
    process.join()
    killed = time.perf_counter()
    _, alive = psutil.wait_procs(workers, timeout=_PATIENCE_S)
    took = time.perf_counter() - killed
    pids = {str(process.pid), *(str(worker.pid) for worker in workers)}
    left = [name for name in os.listdir(_SHM) if name in held or pids & set(re.split(r"\D+", name))]
    return {"names in /dev/shm": len(left), "workers alive": len(alive), "seconds until workers ended": took}


def _shared_files(processes: list[psutil.Process]) -> set[str]:
    """Names in /dev/shm that the processes have mapped. All new ones there would be other programs' too."""
    paths = (Path(mapping.path) for process in processes for mapping in process.memory_maps())
    return {path.name for path in paths if path.parent == _SHM}


def _read_for_ever(stream: TrainingStream, connection: Any) -> None:
    for number, _ in enumerate(_endless(stream)):
        if number == 2 * _WORKERS:
            connection.send([child.pid for child in psutil.Process().children()])
