"""The `run`, `optim` and `train` sections of a run's config."""

import re

from pydantic import Field, field_validator, model_validator

from mres.section import Section, instead_of, named, only_with


class RunConfig(Section):
    """Where a run's folder is and what seeds it."""

    dir: str = Field("runs", description="parent of the runs")
    name: str = Field("run", description="the run's folder in it")
    seed: int = Field(0, ge=0, lt=2**31)

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not re.fullmatch(r"[\w][\w.\-]*", name) or len(name.encode()) > 200:
            raise ValueError(
                f"{name[:80]!r} is not a plain folder name (letters, digits, '_', '-', '.'; up to 200 bytes)"
            )
        return name


class OptimConfig(Section):
    """AdamW with linear warm-up and cosine decay; the defaults are the paper's."""

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
    warmup_epochs: float | None = Field(
        None, ge=0, description="instead of warmup_steps", json_schema_extra=instead_of("warmup_steps")
    )
    max_grad_norm: float = Field(1.0, gt=0, json_schema_extra=named("gradient_clipping", "clip_grad", "grad_clip"))
    image_lr_scale: float = Field(1.0, gt=0, description="times lr, for the model's image encoder")
    text_lr_scale: float = Field(1.0, gt=0, description="times lr, for the model's text encoder")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="times lr for each block of an encoder that lies between a weight and its top"
    )
    freeze: tuple[str, ...] = Field(
        (), description="parameters that do not move: names up to a dot, such as text or vision.vit.patch_embed"
    )
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="of a moving average of the weights; default: none is kept"
    )
    ema_every: int = Field(
        1, ge=1, description="steps between updates of the average", json_schema_extra=only_with("ema_decay")
    )

    @model_validator(mode="after")
    def _check(self) -> "OptimConfig":
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={list(self.betas)} must lie in [0, 1)")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr={self.min_lr} is above lr={self.lr}")
        return self


class TrainConfig(Section):
    """How long to train and what to write on the way."""

    steps: int | None = Field(
        None, ge=1, description="optimizer steps", json_schema_extra=named("max_steps", "iterations")
    )
    epochs: int | None = Field(
        None,
        ge=1,
        description="passes over the data; the default is the paper's 50",
        json_schema_extra=instead_of("steps"),
    )
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
    spike_window: int = Field(
        100, ge=4, description="steps of the running median", json_schema_extra=only_with("spike_factor")
    )
    max_spikes: int = Field(
        5,
        ge=0,
        description="spikes to skip within spike_window steps before the run goes back",
        json_schema_extra=only_with("spike_factor"),
    )
    max_rollbacks: int = Field(
        2, ge=0, description="times a run goes back to its last good checkpoint by itself before it ends"
    )
    deterministic: bool = Field(False, description="only kernels that give the same bits each time; slower on GPUs")
    trace_batches: bool = Field(False, description="write batches.jsonl: the ids of every global batch")
    callbacks: tuple[str, ...] = Field(
        (), description="classes of one's own that look at the run: my_file.py:MyCallback or package.module:MyCallback"
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads a process; default: OMP_NUM_THREADS, or the cores divided by the ranks that share them",
    )
    heartbeat: bool = Field(True, description="write heartbeat/: where every rank is, for tools/doctor.py")
    profile: tuple[int, int] | None = Field(
        None, description="[first, last] step to run under torch's profiler, into profile/"
    )
    memory_snapshot: tuple[int, int] | None = Field(
        None, description="[first, last] step to record the memory of the GPU in, into profile/"
    )
    profile_ranks: tuple[int, ...] = Field(
        (0,),
        description="ranks that write profile and memory_snapshot",
        json_schema_extra=only_with("profile", "memory_snapshot"),
    )

    @field_validator("callbacks", mode="before")
    @classmethod
    def _one_or_more(cls, callbacks: object) -> object:
        return (callbacks,) if isinstance(callbacks, str) else callbacks

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        for key, window in {"profile": self.profile, "memory_snapshot": self.memory_snapshot}.items():
            if window is not None and not 1 <= window[0] <= window[1]:
                raise ValueError(f"{key}={list(window)} must be [first, last] with 1 <= first <= last")
        if not self.profile_ranks or min(self.profile_ranks) < 0:
            raise ValueError(f"profile_ranks={list(self.profile_ranks)} must name ranks, from 0 on")
        return self

    def total_steps(self, steps_per_epoch: int) -> int:
        return self.steps if self.steps is not None else (self.epochs or 50) * steps_per_epoch
