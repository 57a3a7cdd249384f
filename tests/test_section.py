"""What a key says beside itself of other keys is kept."""

from typing import Literal

import pytest
from pydantic import Field, ValidationError

from mres.section import Section, belongs_to, instead_of, named, only_with, told


class Engine(Section):
    """A section as rooms have them."""

    fuel: Literal["petrol", "power"] = "petrol"
    octane: int = Field(95, json_schema_extra=belongs_to("fuel=petrol") | named("ron"))
    turbo: float | None = None
    boost: float = Field(1.0, json_schema_extra=only_with("turbo", "fuel=power"))
    litres: float | None = Field(None, json_schema_extra=instead_of("turbo"))
    lamps: tuple[int, ...] = Field((0,), json_schema_extra=only_with("turbo"))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"boost": 2}, "boost=2 has an effect with turbo or fuel=power only, not with fuel=petrol; set that or remove boost"),
        ({"lamps": (1, 2)}, "lamps=[1, 2] has an effect with turbo only; set that or remove lamps"),
        ({"fuel": "power", "octane": 95}, "octane=95 has an effect with fuel=petrol only, not with fuel=power"),
        ({"turbo": 0.5, "litres": 2}, "turbo=0.5 and litres=2 are both given; set one of them to null"),
        ({"boots": 2}, "Extra inputs are not permitted"),
    ],
)  # fmt: skip
def test_a_key_without_effect_is_refused(values: dict, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Engine.model_validate(values)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [{}, {"boost": 1.0}, {"boost": 2, "turbo": 1}, {"boost": 2, "fuel": "power"}, {"octane": 98}, {"litres": 2}],
)
def test_one_with_an_effect_or_its_default_is_not(values: dict) -> None:
    assert Engine.model_validate(values).model_dump(include=set(values)) == values


def test_what_a_dump_must_leave_out() -> None:
    assert list(Engine(fuel="power").keys_of_others()) == ["octane"]
    assert list(Engine().keys_of_others()) == []


def test_what_is_told_together_is_told_apart() -> None:
    field = Engine.model_fields["octane"]
    assert (told(field, "also_called"), told(field, "belongs_to"), told(field, "only_with")) == (
        ["ron"], ["fuel=petrol"], [],
    )  # fmt: skip
