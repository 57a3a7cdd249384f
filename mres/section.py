"""What every section of a run's config is: typed, strict and frozen, with what there is to know about a key beside it.

A key says what other frameworks call it (`named`), with which other key it has an effect (`only_with`), and which key it
stands for (`instead_of`): `Field(1, ge=1, json_schema_extra=only_with("ema_decay"))`.
"""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo
from typing_extensions import Self


def named(*others: str) -> JsonDict:
    """What other frameworks call a key; a config error for such a name suggests ours."""
    return {"also_called": [*others]}


def only_with(*keys: str) -> JsonDict:
    """A key has an effect where one of `keys` is set; another value than its default is refused elsewhere.

    A key is that of the same section: "ema_decay" (any value but null), or with its values: "shuffle=blocks".
    """
    return {"only_with": [*keys]}


def belongs_to(*keys: str) -> JsonDict:
    """As `only_with`; refused elsewhere even at its default, and a dump leaves it out there."""
    return {"belongs_to": [*keys]}


def instead_of(key: str) -> JsonDict:
    """Of this key and the other one may be set."""
    return {"instead_of": [key]}


def told(field: FieldInfo, what: str) -> list[str]:
    """What a key says of itself by one of the functions above."""
    extra = field.json_schema_extra
    values = extra.get(what, []) if isinstance(extra, dict) else []
    return [str(value) for value in values] if isinstance(values, list) else []


class Section(BaseModel):
    """A section of the config; refuses unknown keys and those that would have no effect."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _refuse_without_effect(self) -> Self:
        for key, field in type(self).model_fields.items():
            value = getattr(self, key)
            for other in told(field, "instead_of"):
                if value is not None and getattr(self, other) is not None:
                    both = f"{other}={_shown(getattr(self, other))} and {key}={_shown(value)}"
                    raise ValueError(f"{both} are both given; set one of them to null")
            if value != field.get_default(call_default_factory=True):
                self._refuse(key, told(field, "only_with"))
            if key in self.model_fields_set:
                self._refuse(key, told(field, "belongs_to"))
        return self

    def _refuse(self, key: str, conditions: list[str]) -> None:
        if not conditions or any(self._holds(condition) for condition in conditions):
            return
        names = dict.fromkeys(condition.partition("=")[0] for condition in conditions if "=" in condition)
        found = "".join(f", not with {name}={_shown(getattr(self, name))}" for name in names)
        wanted = " or ".join(conditions)
        raise ValueError(
            f"{key}={_shown(getattr(self, key))} has an effect with {wanted} only{found}; set that or remove {key}"
        )

    def _holds(self, condition: str) -> bool:
        key, equals, wanted = condition.partition("=")
        return _shown(getattr(self, key)) == wanted if equals else getattr(self, key) is not None

    def keys_of_others(self) -> Iterator[str]:
        """The keys that belong to others than are set; a config that gives them is refused."""
        for key, field in type(self).model_fields.items():
            owners = told(field, "belongs_to")
            if owners and not any(self._holds(owner) for owner in owners):
                yield key


def _shown(value: Any) -> str:
    """As the command line takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(list(value) if isinstance(value, tuple) else value)
