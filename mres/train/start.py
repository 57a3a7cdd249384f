"""What weights a new run begins with, tensor by tensor: drawn from its seed, or from files that the config names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path

from torch import Tensor, nn

from mres.checkpoint import pretrained
from mres.config import Config
from mres.errors import UserError
from mres.model.initial import initial_weights
from mres.parallel.strategy import Strategy


def first_weights(model: nn.Module, config: Config, say: Callable[[str], None]) -> Iterable[tuple[str, Tensor]]:
    """Every parameter by name, a later one in place of an earlier of its name; files are matched with the model here.

    Args:
        model: names and shapes, before a strategy shards it; it may be on the meta device.
        config: `checkpoint` names files, `run` the seed.
        say: told what was found in them.

    Raises:
        UserError: a file that is not there, is damaged or does not fit.
    """
    if config.checkpoint.init_from:
        found = pretrained.match_weights(model, config.model, Path(config.checkpoint.init_from))
        say(str(found.restored))
        return found
    drawn = initial_weights(model, config.run.seed)
    if not config.checkpoint.text_weights:
        return drawn
    tower = pretrained.match_text_weights(model, Path(config.checkpoint.text_weights))
    say(str(tower.restored))
    return chain(drawn, tower)


def check_finite(strategy: Strategy, source: str) -> None:
    """No weight may be NaN, which they all are until they are filled, or infinite.

    Raises:
        UserError: names them and `source`.
    """
    broken = strategy.not_finite()
    if broken:
        raise UserError(
            f"{len(broken)} weights from {source} are not finite: {', '.join(broken[:3])}"
            f"{' …' if len(broken) > 3 else ''}; start from weights that are (checkpoint.init_from, checkpoint.resume)"
        )
