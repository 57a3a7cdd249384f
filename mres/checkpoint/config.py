"""The `checkpoint` section of a run's config."""

from pydantic import BaseModel, ConfigDict, Field

from mres.stream.config import named


class CheckpointConfig(BaseModel):
    """When checkpoints are written and where a run starts from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    every: int = Field(
        1000, ge=1, description="steps between checkpoints", json_schema_extra=named("save_every", "save_steps")
    )
    keep: int = Field(2, ge=1, description="newest checkpoints kept")
    resume: str = Field("auto", description="auto: the run's newest good checkpoint; never; or a checkpoint's folder")
    init_from: str | None = Field(
        None,
        description="weights to start from: a run, a checkpoint, an exported folder or a .safetensors file",
        json_schema_extra=named("pretrained"),
    )
    text_weights: str | None = Field(None, description="a local open_clip checkpoint for the text tower")
