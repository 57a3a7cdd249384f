"""The `checkpoint` section of a run's config."""

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from mres.section import Section, instead_of, named, only_with


class CheckpointConfig(Section):
    """When checkpoints are written and where a run starts from."""

    every: int = Field(
        1000, ge=1, description="steps between checkpoints", json_schema_extra=named("save_every", "save_steps")
    )
    keep: int = Field(2, ge=1, description="newest checkpoints kept")
    keep_every: int | None = Field(
        None, ge=1, description="steps whose multiples are kept for good, a multiple of every; default: none"
    )
    keep_best: str | None = Field(
        None,
        description="keep the checkpoint with the highest of this figure of evaluations during training, such as object.mIoU",
        json_schema_extra=named("monitor", "save_best"),
    )
    on_failure: Literal["stop", "continue"] = Field(
        "stop", description="where a checkpoint cannot be written: stop, or go on and try at the next one"
    )
    async_save: bool = Field(
        True,
        description="write in the background, from a copy in host memory",
        json_schema_extra=named("async_mode", "asynchronous"),
    )
    resume: str = Field("auto", description="auto: the run's newest good checkpoint; never; or a checkpoint's folder")
    init_from: str | None = Field(
        None,
        description="weights to start from: a run, a checkpoint, an exported folder or a .safetensors file",
        json_schema_extra=named("pretrained"),
    )
    text_weights: str | None = Field(
        None,
        description="the text tower's: a CLIP of OpenAI, open_clip or Hugging Face, as a local file or folder",
        json_schema_extra=instead_of("init_from"),  # which brings both towers
    )
    image_weights: str | None = Field(
        None,
        description="the image tower's: such a CLIP (text_weights' own, or another) or a ViT of timm",
        json_schema_extra=instead_of("init_from"),
    )
    strict: bool = Field(
        True,
        description="weights must fit whole; false: what a source lacks keeps its first value, the rest stays behind",
        json_schema_extra=only_with("init_from", "text_weights", "image_weights"),
    )

    @field_validator("keep_best")
    @classmethod
    def _known_figure(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"(object|part|object_part)\.(mIoU|oIoU|P@0\.[5-9])", name):
            raise ValueError(
                f"{name!r} is no figure of an evaluation; give object, part or object_part, a dot, and mIoU, oIoU or "
                "P@0.5 … P@0.9, such as object.mIoU"
            )
        return name

    @model_validator(mode="after")
    def _check(self) -> "CheckpointConfig":
        if self.keep_every is not None and self.keep_every % self.every:
            raise ValueError(f"keep_every={self.keep_every} must be a multiple of every={self.every}")
        return self
