"""state.json: what a checkpoint says of itself, held to its types and bounds before anything is made of it."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mres.formats.folder import CheckpointError
from mres.io.json_files import JsonError, read_json

Count = Annotated[int, Field(ge=0, lt=2**63)]


class _Known(BaseModel):
    """Other keys may be there: earlier and later versions have more."""

    model_config = ConfigDict(strict=True, extra="ignore")


class _Group(_Known):
    names: list[str]
    weight_decay: float = Field(0.0, allow_inf_nan=False)
    lr_scale: float = Field(1.0, allow_inf_nan=False)


class _Model(_Known):
    kind: str | None = None
    kind_file: str | None = None
    kind_sha256: str | None = None


class _Stream(_Known):
    seed: Count = 0
    epoch: Count = 0
    images_consumed: Count = 0
    fingerprint: str = ""
    order: str = ""


class _State(_Known):
    step: Count
    weights_only: bool = False
    weights: str = "model"
    model: _Model = _Model()
    stream: _Stream | None = None
    expressions_seen: Count = 0
    bad_steps: Count = 0
    spikes: Count = 0
    rollbacks: Count = 0
    skipped_batches: Count = 0
    quarantined: list[str] = []
    recent: list[list[float | None]] | None = None
    frozen: list[str] = []
    buffers: list[str] = []
    groups: list[_Group] = []

    @model_validator(mode="after")
    def _check(self) -> "_State":
        if self.recent is not None and (len(self.recent) != 2 or len(self.recent[0]) != len(self.recent[1])):
            raise ValueError("'recent' has two rows of the same length")
        return self


def read_state(path: Path) -> dict[str, Any]:
    """The content of a state.json.

    Raises:
        CheckpointError: naming the file, and the field that is missing or not of its type.
    """
    try:
        state = read_json(path)
        _State.model_validate(state)
    except (OSError, JsonError) as error:
        raise CheckpointError(f"{path} is not what mres writes: no JSON object with a step ({error})") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{path} is not what mres writes: {where or 'it'}: {first['msg']}") from None
    assert isinstance(state, dict)
    return state
