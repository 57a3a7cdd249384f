"""Bench of the data path: samples a second of mres, of what is usual, of mosaicml-streaming, and the decoder's limit.

Shapes: K expressions an image, H×W an image, S side of the square, h side of the grid, C = 3 colours.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch

from benchmarks import limit
from benchmarks.claim import claim
from benchmarks.limit import Decodable, decodables, decode_rate
from benchmarks.mosaic import StreamedSet
from benchmarks.synthetic import made_source
from benchmarks.timing import batch_rate, medians
from benchmarks.usual import UsualPipeline, usual_batches
from mres.errors import UserError
from mres.model.text import Tokenizer
from mres.model.unires.config import UniresConfig
from mres.shards.writer import WriteOptions, write_shards
from mres.stream import transforms
from mres.stream.batch import StreamShape
from mres.stream.config import DataConfig
from mres.stream.image import reduction_of, square_image
from mres.stream.loader import Batches, TrainingStream
from mres.stream.sets import TrainingSets

_SHARDS = 4  # webdataset gives each worker whole ones
_WARM_UP = 2  # batches of each worker
# Levels of 255 between our image and the usual one: two resizes round differently, and a JPEG that is decoded at 1/2,
# 1/4 or 1/8 is averaged by its decoder.
_MOST_LEVELS, _MOST_LEVELS_REDUCED = 2, 8
_COMPARED = 32  # images

LIMITS = {
    "limit: JPEG, masks by mres": (limit.image, limit.masks_by_mres),
    "limit: JPEG, masks by pycocotools": (limit.image, limit.masks_by_pycocotools),
    "limit: JPEG, shares of the grid": (limit.image, limit.masks_on_grid),
    "limit: JPEG, resize, shares of the grid": (limit.squared_image, limit.masks_on_grid),
}


@dataclass(frozen=True)
class _Setup:
    """The same records in both formats, and what is made of them."""

    tar: Path
    mds: Path
    shape: StreamShape
    tokenize: Tokenizer
    images: int
    k: int

    def config(self, workers: int) -> DataConfig:
        return DataConfig(
            train=str(self.tar), images_per_batch=self.images, expressions_per_image=self.k, workers=workers
        )


def throughput(arguments: argparse.Namespace) -> dict[str, Any]:
    """Reads one made set in every way, with one loader process and with two; alternating, so that noise hits all.

    Raises:
        UserError: a number of images that does not split evenly; images that are not those of the usual pipeline.
    """
    if arguments.num_images % (8 * arguments.images):
        raise UserError(
            f"--num-images {arguments.num_images} must be a multiple of 8 x --images ({8 * arguments.images}), "
            "so that two workers get whole batches and enough of them"
        )
    torch.set_num_threads(1)
    with TemporaryDirectory(prefix="mres-bench-") as folder:
        setup = _make(Path(folder), arguments)
        items = decodables(TrainingSets.open(setup.config(0))[0], setup.config(0), setup.shape)
        same = _differences(setup, items[:_COMPARED])
        rates = {
            name: _rates(setup, items, workers, arguments.rounds)
            for name, workers in (("one worker", 1), ("two workers", 2))
        }
    return {
        "bench": "data",
        "what": f"{arguments.num_images} images of 640 x 480 with 32 masks, side {setup.shape.side}, K={setup.k}, "
        f"batches of {setup.images}; samples a second, median of {arguments.rounds} rounds",
        **rates,
        "levels of 255 between outputs": same,
        "claims": {
            f"{what}, {name}": found for name, of_sides in rates.items() for what, found in _claims(of_sides).items()
        },
    }


def _make(folder: Path, arguments: argparse.Namespace) -> _Setup:
    model = UniresConfig.model_validate({"size": arguments.size})
    source = made_source(arguments.num_images)
    for layout in ("tar", "mds"):
        options = WriteOptions(images_per_shard=arguments.num_images // _SHARDS, workers=2, layout=_layout(layout))
        write_shards(source, folder / layout, options)
    return _Setup(
        folder / "tar",
        folder / "mds",
        StreamShape(model.image_size, model.mask_stride, model.text_length),
        Tokenizer(model.text_vocab_size, model.text_length),
        arguments.images,
        arguments.k,
    )


def _layout(name: str) -> Literal["tar", "mds"]:
    return "mds" if name == "mds" else "tar"


def _rates(setup: _Setup, items: list[Decodable], workers: int, rounds: int) -> dict[str, float]:
    config = setup.config(workers)
    sets = TrainingSets.open(config)
    stream = TrainingStream(sets, config, setup.shape, setup.tokenize, seed=0, rank=0, world_size=1)
    ours = Batches(sets, stream.order, config, setup.shape, setup.tokenize)
    streamed = StreamedSet(setup.mds, ours, config, setup.shape)

    def usual(masks: str) -> Any:
        pipeline = UsualPipeline(setup.k, setup.shape, setup.tokenize, masks)
        return usual_batches(setup.tar, pipeline, setup.images, workers, config.prefetch)

    sides: dict[str, Callable[[], Any]] = {
        "mres": lambda: stream.batches(0, stream.order.steps_per_epoch),
        "usual": lambda: usual("box"),
        "usual, masks by nearest": lambda: usual("nearest"),
        "mosaicml-streaming": streamed.batches,
    }
    measures: dict[str, Callable[[], float]] = {
        name: partial(_samples_a_second, batches, workers, setup.images) for name, batches in sides.items()
    }
    measures |= {name: partial(decode_rate, items, setup.shape, steps, workers) for name, steps in LIMITS.items()}
    return medians(measures, rounds)


def _samples_a_second(batches: Callable[[], Any], workers: int, images: int) -> float:
    return images * batch_rate(batches(), skip=_WARM_UP * workers)


def _claims(rates: dict[str, float]) -> dict[str, dict[str, Any]]:
    ours = rates["mres"]
    return {
        "mres / usual": claim(ours / rates["usual"], ">=", 2),
        "mres / limit, masks by mres": claim(ours / rates["limit: JPEG, masks by mres"], ">=", 0.75),
        "mres / limit, masks by pycocotools": claim(ours / rates["limit: JPEG, masks by pycocotools"], ">=", 0.75),
        "mres / mosaicml-streaming": claim(ours / rates["mosaicml-streaming"], ">=", 1),
    }


def _differences(setup: _Setup, items: list[Decodable]) -> dict[str, float]:
    """How far the usual pipeline's images and masks are from ours, the same expressions drawn, nothing augmented.

    Raises:
        UserError: an image differs by more than rounding explains.
    """
    found: dict[str, list[np.ndarray]] = {}
    for item in items:
        for name, levels in _levels_apart(setup, item).items():
            found.setdefault(name, []).append(levels.ravel())
    same: dict[str, float] = {}
    for name, of_images in found.items():
        levels_N = np.concatenate(of_images)
        same |= {f"{name}, largest": float(np.max(levels_N)), f"{name}, mean": float(np.mean(levels_N))}
    whole = all(reduction_of(item.geometry) == 1 for item in items)
    allowed = _MOST_LEVELS if whole else _MOST_LEVELS_REDUCED
    if same["image, largest"] > allowed:
        raise UserError(
            f"the usual pipeline's images differ from ours by up to {same['image, largest']:g} levels, "
            f"at most {allowed} are allowed; see mres/stream/image.py"
        )
    return {**same, "image, largest allowed": allowed}


def _levels_apart(setup: _Setup, item: Decodable) -> dict[str, np.ndarray]:
    side, stride = setup.shape.side, setup.shape.stride
    encoded = [{"size": [mask.height, mask.width], "counts": mask.counts} for mask in item.masks]
    image_CSS = torch.empty(3, side, side, dtype=torch.uint8)
    square_image(item.record, item.geometry, image_CSS, "bench")
    masks_Khh = transforms.square_masks(item.masks, item.geometry, side, stride)
    exact_Khh = _exact_shares(limit.masks_by_pycocotools(item, setup.shape), item.geometry, side, stride)
    apart = {"masks, against the exact mean of whole masks": np.abs(masks_Khh - exact_Khh)}
    for name in ("box", "nearest"):
        theirs_CSS, theirs_Khh, _ = UsualPipeline(setup.k, setup.shape, setup.tokenize, name).prepare(
            item.record.image, encoded, ["the wheel"]
        )
        apart["image"] = np.abs(image_CSS.numpy().astype(int) - theirs_CSS.numpy())
        apart[f"masks, against Pillow's {name}"] = np.abs(masks_Khh.astype(int) - theirs_Khh.numpy())
    return apart


def _exact_shares(masks_HWK: np.ndarray, geometry: transforms.Geometry, side: int, stride: int) -> np.ndarray:
    """The mean of whole masks over each cell of the letterboxed grid, by overlaps of pixels and cells: 255·A·mask·Bᵀ."""
    left, top, right, bottom = (edge / stride for edge in geometry.rect)
    rows_hH = _overlaps(masks_HWK.shape[0], top, bottom, side // stride)
    columns_hW = _overlaps(masks_HWK.shape[1], left, right, side // stride)
    return 255 * np.einsum("yh,hwk,xw->kyx", rows_hH, masks_HWK.astype(float), columns_hW, optimize=True)


def _overlaps(pixels: int, first: float, last: float, cells: int) -> np.ndarray:
    """How much of each cell each pixel covers, float64 (cells, pixels), where the pixels lie from `first` to `last`."""
    edges = np.linspace(first, last, pixels + 1)
    cell = np.arange(cells)[:, None]
    return np.clip(np.minimum(edges[1:], cell + 1) - np.maximum(edges[:-1], cell), 0, None)
