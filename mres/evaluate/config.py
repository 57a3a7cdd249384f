"""The `evaluate` section of a run's config."""

from typing import Literal

from pydantic import Field

from mres.section import Section


class EvaluateConfig(Section):
    """How masks are measured (docs/evaluation.md defines every figure)."""

    threshold: float = Field(0.5, gt=0, lt=1, description="probability from which a pixel is foreground")
    images_per_batch: int = Field(16, ge=1, description="images a rank takes at a time")
    every: int | None = Field(None, ge=1, description="steps between evaluations during training; default: never")
    max_images: int | None = Field(None, ge=1, description="of the evaluations during training; default: all")
    weights: Literal["model", "ema"] = Field(
        "model", description="of a checkpoint: the weights, or their moving average (optim.ema_decay)"
    )
    save_masks: bool = Field(True, description="keep the predicted masks in results.jsonl, for the report's gallery")
