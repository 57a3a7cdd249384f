"""The `run`, `optim` and `train` sections of a run's config."""

import re

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mres.stream.config import named


class RunConfig(BaseModel):
    """Where a run's folder is and what seeds it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dir: str = Field("runs", description="parent of the runs")
    name: str = Field("run", description="the run's folder in it")
    seed: int = Field(0, ge=0, lt=2**31)

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not re.fullmatch(r"[\w][\w.\-]*", name):
            raise ValueError(f"{name!r} is not a plain folder name (letters, digits, '_', '-', '.')")
        return name


class OptimConfig(BaseModel):
    """AdamW with linear warm-up and cosine decay; the defaults are the paper's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lr: float = Field(
        1e-5,
        gt=0,
        allow_inf_nan=False,
        description="peak learning rate",
        json_schema_extra=named("learning_rate", "base_lr"),
    )
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end of the cosine")
    weight_decay: float = Field(5e-4, ge=0, json_schema_extra=named("wd"))
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    warmup_steps: int = Field(1000, ge=0, json_schema_extra=named("warmup", "warmup_iters"))
    max_grad_norm: float = Field(1.0, gt=0, json_schema_extra=named("gradient_clipping", "clip_grad", "grad_clip"))

    @model_validator(mode="after")
    def _check(self) -> "OptimConfig":
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={list(self.betas)} must lie in [0, 1)")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr={self.min_lr} is above lr={self.lr}")
        return self


class TrainConfig(BaseModel):
    """How long to train and what to write on the way."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int | None = Field(
        None, ge=1, description="optimizer steps", json_schema_extra=named("max_steps", "iterations")
    )
    epochs: int | None = Field(None, ge=1, description="passes over the data; the default is the paper's 50")
    log_every: int = Field(10, ge=1, description="steps a line of metrics")
    accumulate: int = Field(
        1,
        ge=1,
        description="micro-batches a rank splits its share of the global batch into",
        json_schema_extra=named("gradient_accumulation_steps", "accum"),
    )
    max_bad_steps: int = Field(3, ge=0, description="non-finite steps to skip in a row before the run stops")
    trace_batches: bool = Field(False, description="write batches.jsonl: the ids of every global batch")
    threads: int | None = Field(
        None, ge=1, description="CPU threads a process; default: the cores divided by the ranks"
    )

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        if self.steps is not None and self.epochs is not None:
            raise ValueError(f"steps={self.steps} and epochs={self.epochs} are both given; set one of them to null")
        return self

    def total_steps(self, steps_per_epoch: int) -> int:
        return self.steps if self.steps is not None else (self.epochs or 50) * steps_per_epoch
