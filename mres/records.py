"""The image record, the unit of storage, streaming and batching; its JSON form is `record_json.py`.

One record is one image with all its targets; one target is one mask with all its expressions. The image encoder never
sees the text, so an image is read, decoded and encoded once for all of its expressions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from mres import rle
from mres.errors import UserError

Granularity = Literal["object", "part"]
GRANULARITIES: tuple[Granularity, ...] = ("object", "part")
SourceId: TypeAlias = int | str  # as the source has it: a number stays a number
MAX_SIDE = 20_000
MAX_TARGETS = 10_000
MAX_EXPRESSION_CHARACTERS = 2_000


class RecordError(UserError):
    """A record that breaks the format; the message names the record, the field, what was found and what is allowed."""


@dataclass(frozen=True, slots=True)
class Expression:
    """A referring expression; `kind` says how it refers ("category", "colour", "position" …), "" where unknown.

    Where the source has them, `sent_id` is its id there, and `sent_index` its place among the sentences of its ref,
    blank ones (which become no expression) included.
    """

    text: str
    kind: str = ""
    sent_id: SourceId | None = None
    sent_index: int | None = None


@dataclass(frozen=True, slots=True)
class Rle:
    """A binary mask as COCO run-length encoding: column-major, first run zeros, `counts` in COCO's compressed form."""

    height: int
    width: int
    counts: bytes

    @property
    def is_empty(self) -> bool:
        """Whether it has no pixel. Raises: ValueError: run lengths that are damaged."""
        return not rle.decode_counts(self.counts)[1::2].any()

    def to_json(self) -> dict[str, Any]:
        return {"size": [self.height, self.width], "counts": self.counts.decode("ascii")}


def decode_masks(masks: Sequence[Rle]) -> np.ndarray:
    """Binary masks of one size as masks_KHW, uint8 0/1.

    Raises:
        ValueError: run lengths that are damaged or do not cover the image.
    """
    return rle.decode_masks([mask.counts for mask in masks], masks[0].height, masks[0].width)


def encode_mask(mask_HW: np.ndarray) -> Rle:
    """COCO run-length encoding of a binary mask."""
    from pycocotools import mask as coco_mask

    encoded = coco_mask.encode(np.asfortranarray(mask_HW, dtype=np.uint8))
    return Rle(mask_HW.shape[0], mask_HW.shape[1], encoded["counts"])


@dataclass(frozen=True, slots=True)
class Target:
    """One mask of an image with the expressions that refer to it.

    `box` is (x, y, width, height) in pixels of the original image; `parent` is the id of the object a part belongs to.
    `ref_id` and `ann_id` are the source's ids of the ref and of its annotation, or annotations. `no_target` says that the
    expressions refer to nothing in the image: the mask is empty because nothing is meant, and there is no category.
    """

    id: str
    granularity: Granularity
    category: str
    mask: Rle
    box: tuple[float, float, float, float]
    expressions: tuple[Expression, ...]
    parent: str | None = None
    ref_id: SourceId | None = None
    ann_id: SourceId | tuple[SourceId, ...] | None = None
    no_target: bool = False


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image (its encoded bytes, JPEG or PNG) and its targets.

    `notes` is what was left out, repaired or assumed when it was made, which the build counts; no part of what is stored.
    """

    id: str
    image: bytes
    width: int
    height: int
    split: str
    source: str
    targets: tuple[Target, ...]
    notes: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @property
    def num_expressions(self) -> int:
        return sum(len(target.expressions) for target in self.targets)

    def pairs(self) -> Iterator[tuple[Target, int]]:
        """Every (target, index of expression) of the record, in its fixed order."""
        for target in self.targets:
            for index in range(len(target.expressions)):
                yield target, index


def expression_id(record: ImageRecord, target: Target, index: int) -> str:
    """The id of one expression in traces and results, unique in a data set: "image/target/index"."""
    return f"{record.id}/{target.id}/{index}"
