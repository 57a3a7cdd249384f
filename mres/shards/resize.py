"""A record made smaller: its image re-encoded at a largest side, its masks and boxes along with it.

Legend: H×W the original image, h×w the smaller one, K masks.
"""

import io
from dataclasses import replace

import numpy as np

from mres.records import ImageRecord, Rle, encode_mask


def shrink_record(record: ImageRecord, max_side: int, quality: int) -> ImageRecord:
    """The record at no more than `max_side` pixels a side (JPEG of `quality`); itself where it is no larger.

    A pixel belongs to a smaller mask if the mask covers at least half of it; a mask too thin for that keeps the pixels
    that it covers most, so that none vanishes.
    """
    from PIL import Image

    longest = max(record.width, record.height)
    if longest <= max_side:
        return record
    width, height = (max(1, round(side * max_side / longest)) for side in (record.width, record.height))
    with Image.open(io.BytesIO(record.image)) as image, io.BytesIO() as buffer:
        image.draft("RGB", (width, height))
        image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=quality)
        content = buffer.getvalue()
    masks = _shrink_masks([target.mask for target in record.targets], height, width)
    scale_x, scale_y = width / record.width, height / record.height
    targets = []
    for target, mask in zip(record.targets, masks, strict=True):
        x, y, w, h = target.box
        targets.append(replace(target, mask=mask, box=(x * scale_x, y * scale_y, w * scale_x, h * scale_y)))
    return replace(record, image=content, width=width, height=height, targets=tuple(targets))


def _shrink_masks(masks: list[Rle], height: int, width: int) -> list[Rle]:
    from PIL import Image
    from pycocotools import mask as coco

    shrunk = []
    for mask in masks:  # one by one: all of them at full size could be gigabytes
        mask_HW = coco.decode({"size": [mask.height, mask.width], "counts": mask.counts})
        # in floating point: of 8 bits, the share of a single pixel rounds to nothing
        share_hw = np.asarray(Image.fromarray(mask_HW.astype(np.float32)).resize((width, height), Image.Resampling.BOX))
        most = float(share_hw.max())
        shrunk.append(encode_mask(share_hw >= min(0.5, most) if most > 0 else share_hw > 0))
    return shrunk
