"""The `parallel` section of a run's config."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

# Keys that only one strategy reads; they are refused under another one.
STRATEGY_OF = {"zero_stage": "zero", "reshard_after_forward": "fsdp"}


class ParallelConfig(BaseModel):
    """Which strategy trains the model across ranks; losses do not depend on it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    strategy: Literal["single", "ddp", "fsdp", "zero"] = "fsdp"
    zero_stage: Literal[1, 2, 3] = Field(2, description="for strategy=zero only")
    compute_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of forward and backward; master weights and gradient reduction are float32"
    )
    reshard_after_forward: bool = Field(True, description="for strategy=fsdp only: free a block's gathered weights")
    timeout_s: int = Field(600, ge=10, description="a collective that waits longer ends the run")

    @model_validator(mode="after")
    def _check(self) -> "ParallelConfig":
        for key, owner in STRATEGY_OF.items():
            if key in self.model_fields_set and self.strategy != owner:
                raise ValueError(
                    f"{key} has an effect with strategy={owner} only, not with strategy={self.strategy}; remove it"
                )
        return self
