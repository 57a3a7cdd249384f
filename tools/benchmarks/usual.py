"""The usual pipeline: webdataset, Pillow, whole masks by pycocotools, each resized to the grid of logits.

Shapes: K expressions an image, H×W an image, S side of the square, h side of the grid, T tokens.
"""

import io
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from mres.stream.batch import StreamShape
from mres.stream.image import FILL
from mres.stream.loader import Tokenize

Sample = tuple[Tensor, Tensor, Tensor]
_FILTERS = {"box": Image.Resampling.BOX, "nearest": Image.Resampling.NEAREST}


class UsualPipeline:
    """Makes (image_CSS, masks_Khh, text_KT), uint8 and token ids, of one record of a tar, letterboxed.

    Args:
        masks: Pillow's filter that takes whole masks to the grid: box (covered shares, nearly) or nearest.
    """

    def __init__(self, k: int, shape: StreamShape, tokenize: Tokenize, masks: str) -> None:
        self._k, self._shape, self._tokenize, self._filter = k, shape, tokenize, _FILTERS[masks]

    def __call__(self, sample: dict[str, Any]) -> Sample:
        """K expressions drawn of all that the record has."""
        targets = json.loads(sample["json"])["targets"]
        pairs = [(target["mask"], e["text"]) for target in targets for e in target["expressions"]]
        masks, texts = zip(*random.sample(pairs, self._k), strict=True)
        return self.prepare(sample["jpg"], masks, texts)

    def prepare(self, jpeg: bytes, masks: Sequence[dict[str, Any]], texts: Sequence[str]) -> Sample:
        """The record's image with these masks (COCO's RLE) and expressions."""
        from pycocotools import mask as coco_mask

        side, grid = self._shape.side, self._shape.grid
        image = Image.open(io.BytesIO(jpeg)).convert("RGB")
        square = _letterboxed(image, side, Image.Resampling.BICUBIC, Image.new("RGB", (side, side), FILL))
        masks_HWK = coco_mask.decode(list(masks)) * 255
        squares = [
            _letterboxed(Image.fromarray(mask_HW), grid, self._filter, Image.new("L", (grid, grid)))
            for mask_HW in masks_HWK.transpose(2, 0, 1)
        ]
        masks_Khh = torch.from_numpy(np.stack([np.asarray(mask) for mask in squares]))
        return torch.from_numpy(np.array(square)).permute(2, 0, 1), masks_Khh, self._tokenize(texts)[0]


def _letterboxed(image: Image.Image, side: int, resample: Image.Resampling, square: Image.Image) -> Image.Image:
    """The image in the middle of `square`, as large as fits."""
    scale = side / max(image.size)
    width, height = (round(length * scale) for length in image.size)
    square.paste(image.resize((width, height), resample), ((side - width) // 2, (side - height) // 2))
    return square


def usual_batches(
    folder: Path, pipeline: Callable[[dict[str, Any]], Sample], images: int, workers: int, prefetch: int
) -> "DataLoader[Any]":
    """One pass through the tars of `folder`, as webdataset's documentation has it."""
    import webdataset

    tars = sorted(str(path) for path in folder.glob("*.tar"))
    dataset = webdataset.WebDataset(tars, shardshuffle=False).map(pipeline)
    return DataLoader(dataset, batch_size=images, num_workers=workers, prefetch_factor=prefetch)
