"""What a model card quotes from outside stays text: no HTML, no Markdown, no further key of the front matter."""

import re

import pytest
import yaml

from mres.config import Config, load_config
from mres.errors import UserError
from mres.export.card import code, plain, render_card

EVIL = '<script>alert(1)</script>"><img src=x>|[a](javascript:b)`**\n---\nlicense: mine\n# Heading\x1b[31m'


def config() -> Config:
    return load_config(None, ["model.size=tiny"])


def origin(name: str) -> dict:
    leaks = {"against": {name: 1}, "leaks": 0, "images": 1, "by_id": 0, "by_hash": 0, "max_distance": 1}
    return {
        "step": 1,
        "weights": "model",
        "model": {},
        "environment": {"git_sha": name, "python": name, "device": name, "packages": {name: name}, "world_size": 1},
        "data": [
            {
                "folder": name,
                "fingerprint": name,
                "images": 1,
                "expressions": {"object": 1, "part": 1},
                "leakcheck": leaks,
            }
        ],
        "started_from": {"towers": {"text_weights": name}},
        "results": [],
        "results_left_out": name,
        "programs": [],
        "exported_with": {name: name},
    }


def test_nothing_from_outside_is_markup() -> None:
    card = render_card(config(), origin(EVIL), {EVIL: 1}, 1)
    outside_code = re.sub(r"`[^`\n]*`", "", card)
    for markup in ("<script", "<img", "[a](", "\nlicense", "\n# Heading", "\x1b"):
        assert markup not in outside_code, markup
    assert "\nlicense" not in card
    assert card.count("\n---\n") == 1, "the end of the front matter alone"
    front = yaml.safe_load(card.split("\n---\n")[0].removeprefix("---\n"))
    assert "license" not in front


def test_texts_and_code_stay_what_they_say() -> None:
    assert plain("val-set_1 (2.0)") == "val-set_1 (2.0)"
    assert plain("a|b\nc") == r"a\|b c"
    assert code("runs/`x`|y") == "runs/'x''y"


@pytest.mark.parametrize(
    "broken", [{"data": [{}]}, {"environment": {}, "results": [{}]}, {"step": "x"}, {"started_from": 1}]
)
def test_what_is_not_as_mres_writes_it_is_named(broken: dict) -> None:
    with pytest.raises(UserError, match=r"origin\.json"):
        render_card(config(), {**origin("x"), **broken}, {}, 1)
