"""The `data` section of a run's config."""

from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from mres.errors import UserError, near
from mres.section import Section, named, only_with

_SET = "{path: …, weight: …}"


class AugmentConfig(Section):
    """Training augmentation; 0 (or false) switches a part off. Every draw is keyed by (seed, epoch, image id)."""

    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    flip_words: Literal["swap", "skip"] = Field(
        "swap",
        description="a flipped image's left and right: swap the words, or skip the flip where such words occur; it is "
        "always skipped where words cannot be judged (other languages, east and west, writing …)",
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


class TrainSet(Section):
    """One of several sets to train on."""

    path: str = Field(min_length=1, description="shard folder")
    weight: float = Field(1.0, gt=0, description="how many times as often its images come")


def _train(value: Any) -> str | list[TrainSet] | None:
    """Reads `data.train`; a union of types would answer an error with one message for each of them."""
    if value is None or (isinstance(value, str) and value):
        return value
    if not isinstance(value, list) or not value:
        raise ValueError(f"expected a shard folder, or a list of folders and of {_SET}, found {value!r}")
    return [_train_set(item, f"set {number}") for number, item in enumerate(value, start=1)]


def _train_set(value: Any, where: str) -> TrainSet:
    if isinstance(value, TrainSet):
        return value
    if not isinstance(value, str | dict):
        raise ValueError(f"{where}: expected a shard folder or {_SET}, found {value!r}")
    fields = {"path": value} if isinstance(value, str) else value
    if fields.get("weight") is True:  # pydantic takes it for the number 1
        raise ValueError(f"{where}: weight = True: a number is due")
    try:
        return TrainSet.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise ValueError(f"{where}: unknown key '{key}'; {near(key, list(TrainSet.model_fields))}") from None
        raise ValueError(f"{where}: {key} = {first['input']!r}: {first['msg']}") from None


class DataConfig(Section):
    """Where the shards are and how batches are drawn from them."""

    train: Annotated[str | list[TrainSet] | None, BeforeValidator(_train)] = Field(
        None,
        description="shard folder to train on, or a list of them: folders and {path: …, weight: …}",
        json_schema_extra=named("train_data", "dataset"),
    )
    val: str | None = Field(None, description="shard folder held out", json_schema_extra=named("val_data", "valid"))
    test: str | None = Field(None, description="a further held-out shard folder")
    split: Literal["train", "val", "test"] = Field("val", description="which of the three launch/evaluate.py evaluates")
    images_per_batch: int = Field(
        32,
        ge=1,
        le=1_000_000,
        description="images of the global batch",
        json_schema_extra=named("batch_size", "global_batch_size"),
    )
    mix_temperature: float = Field(
        1.0,
        ge=1,
        description="several sets: images^(1/temperature) of each come into an epoch; 1: all, larger: small sets often",
        json_schema_extra=named("temperature", "sampling_temperature"),
    )
    shuffle: Literal["blocks", "uniform"] = Field(
        "blocks",
        description="blocks: a rank reads stretches of the shards in shuffled order; uniform: each image by itself",
    )
    shuffle_window: int = Field(
        1024,
        ge=1,
        description="blocks: images that one slot of the batch shuffles among themselves",
        json_schema_extra=only_with("shuffle=blocks")
        | named("shuffle_buffer", "shuffle_buffer_size", "shuffle_block_size", "buffer_size"),
    )
    expressions_per_image: int = Field(
        16, ge=1, le=10_000, description="K", json_schema_extra=named("k", "num_expressions")
    )
    part_share: float = Field(
        0.5, ge=0, le=1, description="share of an image's K draws that are parts, as far as it has them"
    )
    kind_weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="how many times as likely a kind is drawn (default 1; 0: only where nothing else is left)",
    )
    category_balance: float = Field(
        0.0,
        ge=0,
        le=1,
        description="how far rare categories are drawn more often: weight (1/frequency)^balance; 0: as they come",
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
    prefetch: int = Field(
        4, ge=1, le=10_000, description="batches a worker prepares ahead; without effect at workers=0"
    )
    cache_dir: str | None = Field(
        None,
        description="folder of this machine that keeps what was fetched from remote sets",
        json_schema_extra=named("cache", "local_cache"),
    )
    cache_limit_gb: float = Field(
        50.0, gt=0, description="how large that folder may grow", json_schema_extra=named("cache_limit", "cache_size")
    )
    remote_timeout_s: float = Field(
        30.0,
        gt=0,
        description="how long a remote store may be silent",
        json_schema_extra=named("download_timeout", "timeout"),
    )
    remote_retries: int = Field(
        5,
        ge=0,
        description="how often a failed read of a remote store is tried again",
        json_schema_extra=named("download_retry", "retries", "max_retries"),
    )
    max_bad_fraction: float = Field(
        0.0, ge=0, lt=1, description="share of the images that may be broken before the run stops"
    )

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        paths = Counter(chosen.path for chosen in self.train_sets)
        twice = next((path for path, count in paths.items() if count > 1), None)
        if twice is not None:
            raise ValueError(f"train names '{twice}' twice; name it once, with a weight")
        if len(paths) < 2 and self.mix_temperature != 1:
            raise ValueError(f"mix_temperature={self.mix_temperature:g} has an effect with several sets in train only")
        if len(paths) < 2 and any(chosen.weight != 1 for chosen in self.train_sets):
            raise ValueError("train: a weight has an effect with several sets only; name one set by its folder alone")
        return self

    @property
    def train_sets(self) -> list[TrainSet]:
        """What `train` names, as a list; none where it is not set."""
        if self.train is None:
            return []
        return [TrainSet(path=self.train)] if isinstance(self.train, str) else self.train


def local_batch_size(images_per_batch: int, world_size: int) -> int:
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
