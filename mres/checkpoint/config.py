"""The `checkpoint` section of a run's config."""

from pydantic import BaseModel, ConfigDict, Field, model_validator

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

    @model_validator(mode="after")
    def _check(self) -> "CheckpointConfig":
        if self.init_from is not None and self.text_weights is not None:
            raise ValueError(
                "init_from brings the text tower too, so text_weights would have no effect; give one of the two"
            )
        return self
