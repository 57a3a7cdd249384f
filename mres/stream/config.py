"""The `data` section of a run's config."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.config import JsonDict

from mres.errors import UserError


def named(*others: str) -> JsonDict:
    """What other frameworks call a key; a config error for such a name suggests ours."""
    return {"also_called": [*others]}


class AugmentConfig(BaseModel):
    """Training augmentation; 0 (or false) switches a part off. Every draw is keyed by (seed, epoch, image id)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    flip_words: Literal["swap", "skip"] = Field(
        "swap", description="a flipped image's left and right: swap the words, or skip the flip where such words occur"
    )
    zoom: Annotated[tuple[float, float], Field(description="range of the scale of the image in its square")] = (
        1.0,
        1.0,
    )
    shift: float = Field(0.0, ge=0, le=0.5, description="largest shift, as a share of the side")
    brightness: float = Field(0.0, ge=0, lt=1)
    contrast: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _check(self) -> "AugmentConfig":
        low, high = self.zoom
        if not 0.1 <= low <= high <= 10:
            raise ValueError(f"zoom={list(self.zoom)} must be [low, high] with 0.1 <= low <= high <= 10")
        return self


class DataConfig(BaseModel):
    """Where the shards are and how batches are drawn from them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: str | None = Field(
        None, description="shard folder to train on", json_schema_extra=named("train_data", "dataset")
    )
    val: str | None = Field(None, description="shard folder held out", json_schema_extra=named("val_data", "valid"))
    test: str | None = Field(None, description="a further held-out shard folder")
    split: Literal["train", "val", "test"] = Field("val", description="which of the three launch/evaluate.py evaluates")
    images_per_batch: int = Field(
        32, ge=1, description="images of the global batch", json_schema_extra=named("batch_size", "global_batch_size")
    )
    expressions_per_image: int = Field(16, ge=1, description="K", json_schema_extra=named("k", "num_expressions"))
    part_share: float = Field(
        0.5, ge=0, le=1, description="share of an image's K draws that are parts, as far as it has them"
    )
    kind_weights: dict[str, float] = Field(
        default_factory=dict,
        description="how many times as likely a kind is drawn (default 1; 0: only where nothing else is left)",
    )
    resize: Literal["letterbox", "stretch"] = "letterbox"
    augment: AugmentConfig = AugmentConfig()
    workers: int = Field(
        2,
        ge=0,
        le=256,
        description="loader processes a rank; 0 decodes in the training process",
        json_schema_extra=named("num_workers"),
    )
    prefetch: int = Field(4, ge=1, description="batches a worker prepares ahead; without effect at workers=0")
    max_bad_fraction: float = Field(
        0.0, ge=0, lt=1, description="share of the images that may be broken before the run stops"
    )

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        for kind, weight in self.kind_weights.items():
            if weight < 0:
                raise ValueError(f"kind_weights.{kind}={weight} must not be negative")
        return self


def share_of_rank(images_per_batch: int, world_size: int) -> int:
    """Images of a global batch that each rank takes.

    Raises:
        UserError: the batch cannot be split evenly.
    """
    if images_per_batch % world_size:
        raise UserError(
            f"data.images_per_batch={images_per_batch} cannot be split among {world_size} ranks; "
            f"use a multiple of {world_size}"
        )
    return images_per_batch // world_size
