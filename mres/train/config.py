"""The `run`, `optim` and `train` sections of a run's config."""

import re

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mres.stream.config import named

SPIKE_WINDOW, MAX_SPIKES = 100, 5  # the defaults


class RunConfig(BaseModel):
    """Where a run's folder is and what seeds it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

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

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    lr: float = Field(
        1e-5,
        gt=0,
        description="peak learning rate",
        json_schema_extra=named("learning_rate", "base_lr"),
    )
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end of the cosine")
    weight_decay: float = Field(5e-4, ge=0, json_schema_extra=named("wd"))
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    warmup_steps: int | None = Field(
        None, ge=0, description="default: 1000", json_schema_extra=named("warmup", "warmup_iters")
    )
    warmup_epochs: float | None = Field(None, ge=0, description="instead of warmup_steps")
    max_grad_norm: float = Field(1.0, gt=0, json_schema_extra=named("gradient_clipping", "clip_grad", "grad_clip"))
    image_lr_scale: float = Field(1.0, gt=0, description="times lr, for the image encoder (vision.*)")
    text_lr_scale: float = Field(1.0, gt=0, description="times lr, for the text encoder (text.*)")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="times lr for each block of an encoder that lies between a weight and its top"
    )
    freeze: tuple[str, ...] = Field(
        (), description="parameters that do not move: names up to a dot, such as text or vision.vit.patch_embed"
    )
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="of a moving average of the weights; default: none is kept"
    )
    ema_every: int = Field(1, ge=1, description="steps between updates of the average")

    @model_validator(mode="after")
    def _check(self) -> "OptimConfig":
        if self.warmup_steps is not None and self.warmup_epochs is not None:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} and warmup_epochs={self.warmup_epochs:g} are both given; "
                "set one of them to null"
            )
        if self.ema_every > 1 and self.ema_decay is None:
            raise ValueError(f"ema_every={self.ema_every} has an effect with ema_decay only; set that or remove it")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={list(self.betas)} must lie in [0, 1)")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr={self.min_lr} is above lr={self.lr}")
        return self


class TrainConfig(BaseModel):
    """How long to train and what to write on the way."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

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
    max_bad_steps: int = Field(3, ge=0, description="non-finite steps to skip in a row before the run goes back")
    spike_factor: float | None = Field(
        None,
        gt=1,
        description="skip a step whose loss or gradient norm is above so many times its running median; default: none",
    )
    spike_window: int = Field(SPIKE_WINDOW, ge=4, description="steps of the running median")
    max_spikes: int = Field(
        MAX_SPIKES, ge=0, description="spikes to skip within spike_window steps before the run goes back"
    )
    max_rollbacks: int = Field(
        2, ge=0, description="times a run goes back to its last good checkpoint by itself before it ends"
    )
    deterministic: bool = Field(False, description="only kernels that give the same bits each time; slower on GPUs")
    trace_batches: bool = Field(False, description="write batches.jsonl: the ids of every global batch")
    threads: int | None = Field(
        None, ge=1, description="CPU threads a process; default: the cores divided by the ranks"
    )
    heartbeat: bool = Field(True, description="write heartbeat/: where every rank is, for tools/doctor.py")
    profile: tuple[int, int] | None = Field(
        None, description="[first, last] step to run under torch's profiler, into profile/"
    )
    memory_snapshot: tuple[int, int] | None = Field(
        None, description="[first, last] step to record the memory of the GPU in, into profile/"
    )
    profile_ranks: tuple[int, ...] = Field((0,), description="ranks that write profile and memory_snapshot")

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        if self.steps is not None and self.epochs is not None:
            raise ValueError(f"steps={self.steps} and epochs={self.epochs} are both given; set one of them to null")
        defaults = {"spike_window": SPIKE_WINDOW, "max_spikes": MAX_SPIKES}
        changed = [key for key, default in defaults.items() if getattr(self, key) != default]
        if changed and self.spike_factor is None:
            raise ValueError(f"{' and '.join(changed)}: no effect without spike_factor; set that or remove this")
        return self

    @model_validator(mode="after")
    def _check_windows(self) -> "TrainConfig":
        windows = {"profile": self.profile, "memory_snapshot": self.memory_snapshot}
        for key, window in windows.items():
            if window is not None and not 1 <= window[0] <= window[1]:
                raise ValueError(f"{key}={list(window)} must be [first, last] with 1 <= first <= last")
        if self.profile_ranks != (0,) and not any(windows.values()):
            raise ValueError(
                f"profile_ranks={list(self.profile_ranks)} has an effect with profile or memory_snapshot only"
            )
        if not self.profile_ranks or min(self.profile_ranks) < 0:
            raise ValueError(f"profile_ranks={list(self.profile_ranks)} must name ranks, from 0 on")
        return self

    def total_steps(self, steps_per_epoch: int) -> int:
        return self.steps if self.steps is not None else (self.epochs or 50) * steps_per_epoch
