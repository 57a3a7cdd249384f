"""The `model` section as far as all kinds share it, and the `loss` section. No torch: a config is checked before it loads."""

from typing import Any, ClassVar

from pydantic import Field, model_validator

from mres.section import Section

DEFAULT_KIND = "unires"


class ModelConfig(Section):
    """What every kind's own keys are added to.

    `sizes`: what a kind's named sizes stand for, where it has a key `size`; a key that is not given takes that value.
    """

    sizes: ClassVar[dict[str, dict[str, Any]]] = {}
    kind: str = Field(DEFAULT_KIND, description="unires, cris, or a ModelSpec of one's own: my_model.py:SPEC")

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        return cls.filled(values) if isinstance(values, dict) else values

    @classmethod
    def filled(cls, given: dict[str, Any]) -> dict[str, Any]:
        """What was given, with what the named size says besides."""
        size = given.get("size", cls.model_fields["size"].default) if cls.sizes else None
        return {**cls.sizes[size], **given} if size in cls.sizes else given


MOST_PARAMETERS = 10**12


def refuse_giants(parameters: int, what: str) -> None:
    """Raises: ValueError: a model of so many parameters; `what` names the keys that decide."""
    if parameters > MOST_PARAMETERS:
        raise ValueError(
            f"{what} ask for a model of about {parameters:.1e} parameters ({4 * parameters / 1e12:,.0f} TB in float32); at most "
            f"{MOST_PARAMETERS:.0e} are built"
        )


class LossConfig(Section):
    """Binary cross-entropy and Dice on the logits, each averaged over the expressions of the global batch."""

    bce_weight: float = Field(1.0, ge=0)
    dice_weight: float = Field(1.0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> "LossConfig":
        if self.bce_weight == 0 and self.dice_weight == 0:
            raise ValueError("bce_weight and dice_weight are both 0; nothing would be learned")
        return self
