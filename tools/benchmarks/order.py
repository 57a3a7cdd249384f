"""Bench of the order: what it costs to know which image comes where, at any position, and how well it shuffles."""

import argparse
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]

from benchmarks.claim import claim
from benchmarks.order_quality import measure
from benchmarks.synthetic import made_source
from benchmarks.timing import alternate
from mres.io.processes import spread
from mres.model.text import Tokenizer
from mres.model.unires.config import UniresConfig
from mres.shards.reader import BLOCK_RECORDS
from mres.shards.writer import WriteOptions, write_shards
from mres.stream.batch import StreamShape
from mres.stream.config import DataConfig
from mres.stream.epoch import SetShape
from mres.stream.loader import TrainingStream
from mres.stream.order import Order
from mres.stream.sets import TrainingSets

_PLACES = (0.0, 0.5, 0.9)  # of an epoch
_STARTS = 50
_MADE_IMAGES = 256  # of the set whose batches are timed


def lookup(arguments: argparse.Namespace) -> dict[str, Any]:
    """The order of one set on many ranks, one image of each batch a rank."""
    new = partial(_order, arguments.num_images, arguments.ranks)
    places = {f"at {place:.0%} of an epoch": place for place in _PLACES}
    starts = alternate({name: partial(_first_samples, new, p) for name, p in places.items()}, arguments.rounds)
    slots = {name: seconds / _STARTS for name, seconds in starts.items()}
    with TemporaryDirectory(prefix="mres-bench-") as folder:
        batches = _batches(Path(folder), arguments.rounds)
    costs = _alone(lambda: _costs(new))
    return {
        "bench": "order",
        "what": f"the order of {arguments.num_images} images on {arguments.ranks} ranks, blocks of {BLOCK_RECORDS}",
        "seconds to the first batch's slots": slots,
        "seconds to the first batch": batches,
        "cost of a rank's order, its first slots drawn": costs,
        "quality of shuffle=blocks": _quality(new()),
        "quality of shuffle=uniform": _quality(new(uniform=True)),
        "claims": {
            "seconds to start": claim(costs["seconds"], "<=", 1),
            "MB allocated, peak": claim(costs["MB allocated, peak"], "<=", 16),
            "MB resident": claim(costs["MB resident"], "<=", 16),
            "slots at 50% / at 0%": claim(slots["at 50% of an epoch"] / slots["at 0% of an epoch"], "<=", 1.2),
            "slots at 90% / at 0%": claim(slots["at 90% of an epoch"] / slots["at 0% of an epoch"], "<=", 1.2),
            "batch at 90% / at 0%": claim(batches["at 90% of an epoch"] / batches["at 0% of an epoch"], "<=", 1.2),
        },
    }


def _order(num_images: int, ranks: int, *, uniform: bool = False) -> Order:
    shape = SetShape(num_images, np.arange(0, num_images, BLOCK_RECORDS))
    config = DataConfig(train="made", images_per_batch=ranks, shuffle="uniform" if uniform else "blocks")
    return Order.from_config(config, [shape], seed=0)


def _first_samples(new: Callable[[], Order], place: float) -> None:
    """What the last rank does when it starts or resumes there, `_STARTS` times: once takes but a millisecond."""
    for _ in range(_STARTS):
        order = new()
        step = int(place * order.steps_per_epoch)
        next(order.samples(step, step + 1, rank=order.images_per_batch - 1, world_size=order.images_per_batch))


def _costs(new: Callable[[], Order]) -> dict[str, float]:
    """Measured once for time and resident memory, and once more for what Python and NumPy allocate."""
    process = psutil.Process()
    resident, started = process.memory_info().rss, time.perf_counter()
    held = _started(new)
    seconds, grown = time.perf_counter() - started, process.memory_info().rss - resident
    del held
    tracemalloc.start()
    held = _started(new)
    now, peak = tracemalloc.get_traced_memory()
    del held
    return {
        "seconds": seconds,
        "MB resident": grown / 1e6,
        "MB allocated": now / 1e6,
        "MB allocated, peak": peak / 1e6,
    }


def _started(new: Callable[[], Order]) -> tuple[object, ...]:
    order = new()
    samples = order.samples(0, order.steps_per_epoch, rank=0, world_size=order.images_per_batch)
    return order, samples, next(samples)


def _alone(work: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Its result, from a process of its own: what was freed here before would hide what it takes."""
    (found,) = [outcome[1] for outcome in spread(lambda _: work(), [0], 1) if outcome]
    return found


def _batches(folder: Path, rounds: int) -> dict[str, float]:
    """Seconds to the first batch of a small set on disk, read in this process."""
    write_shards(made_source(_MADE_IMAGES, different=8), folder / "set", WriteOptions(workers=2))
    model = UniresConfig.model_validate({"size": "base"})
    shape = StreamShape(model.image_size, model.mask_stride, model.text_length)
    tokenize = Tokenizer(model.text_vocab_size, model.text_length)
    config = DataConfig(train=str(folder / "set"), images_per_batch=4, workers=0)

    def first_batch(place: float) -> None:
        stream = TrainingStream(TrainingSets.open(config), config, shape, tokenize, seed=0, rank=0, world_size=1)
        step = int(place * stream.order.steps_per_epoch)
        next(stream.batches(step, step + 1))

    return alternate({f"at {p:.0%} of an epoch": partial(first_batch, p) for p in (0.0, 0.9)}, rounds)


def _quality(order: Order) -> dict[str, float]:
    return {name.replace("_", " "): value for name, value in asdict(measure(order)).items() if value is not None}
