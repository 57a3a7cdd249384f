"""The `parallel` section of a run's config."""

from typing import Literal

from pydantic import Field, model_validator

from mres.section import Section, belongs_to, only_with

_LONGEST_TIMEOUT_S = 30 * 24 * 3600
_FSDP, _ZERO = belongs_to("strategy=fsdp"), belongs_to("strategy=zero")


class ParallelConfig(Section):
    """Which strategy trains the model across ranks; losses do not depend on it."""

    strategy: Literal["single", "ddp", "fsdp", "zero"] = "fsdp"
    zero_stage: Literal[1, 2, 3] = Field(2, description="for strategy=zero only", json_schema_extra=_ZERO)
    ds_config: str | None = Field(
        None,
        description="for strategy=zero only: a DeepSpeed JSON whose keys go to DeepSpeed, checked against the run's",
        json_schema_extra=_ZERO,
    )
    compute_dtype: Literal["float32", "bfloat16", "float64"] = Field(
        "float32",
        description="of forward and backward; master weights and gradient reduction are float32 (float64: all of it)",
    )
    tf32: bool = Field(
        False,
        description="float32 products of matrices on CUDA in TF32; no effect on a CPU",
        json_schema_extra=only_with("compute_dtype=float32"),
    )
    attention: Literal["auto", "flash", "efficient", "math"] = Field(
        "auto", description="kernels of attention; flash and efficient: with math where they cannot take the inputs"
    )
    reshard_after_forward: bool = Field(
        True,
        description="for strategy=fsdp only: free a block's gathered weights; false shards gradients and moments only",
        json_schema_extra=_FSDP,
    )
    shard_ranks: int | None = Field(
        None,
        ge=1,
        description="for strategy=fsdp only: ranks that share one copy of the model; default: all",
        json_schema_extra=_FSDP,
    )
    offload: Literal["none", "cpu"] = Field(
        "none",
        description="for fsdp and zero: masters, moments and the optimizer's step in host memory",
        json_schema_extra=belongs_to("strategy=fsdp", "strategy=zero"),
    )
    activation_checkpointing: Literal["none", "block", "selective"] = Field(
        "none",
        description="what backward computes again instead of keeping it: nothing; all of a block; of a block, all but "
        "products, convolutions and attention",
    )
    compile: bool = Field(False, description="torch.compile, block by block")
    timeout_s: int = Field(600, ge=10, le=_LONGEST_TIMEOUT_S, description="a collective that waits longer ends the run")

    @model_validator(mode="after")
    def _check(self) -> "ParallelConfig":
        half = self.compute_dtype == "bfloat16"
        if self.strategy == "zero" and self.compute_dtype == "float64":
            raise ValueError(
                "compute_dtype=float64 is not for strategy=zero: DeepSpeed keeps its masters in float32; "
                "use strategy=single, ddp or fsdp"
            )
        if self.strategy == "zero" and self.offload == "cpu" and half and self.zero_stage != 3:
            raise ValueError(
                f"offload=cpu with compute_dtype=bfloat16 needs zero_stage=3, not {self.zero_stage}: there DeepSpeed adds up "
                "gradients in bfloat16 and never recovers from a step that is not finite"
            )
        if self.strategy == "zero" and self.zero_stage == 3:
            self._check_blocks_of_stage_3()
        return self

    def _check_blocks_of_stage_3(self) -> None:
        """DeepSpeed gathers weights layer by layer, inside of a block's forward pass."""
        if self.activation_checkpointing == "selective":
            raise ValueError(
                "activation_checkpointing=selective is not for zero_stage=3, whose gathering of weights it would have to "
                "compute again; use block, or strategy=fsdp"
            )
        if self.compile:
            raise ValueError(
                "compile=true has no effect with zero_stage=3, which interrupts the compiler at every layer to gather its "
                "weights; remove it, or use strategy=fsdp"
            )
