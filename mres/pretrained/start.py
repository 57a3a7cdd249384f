"""What weights a new run begins with, tensor by tensor: drawn from its seed, or from files that the config names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path

from torch import Tensor, nn

from mres.config import Config
from mres.errors import UserError
from mres.model.task import SegmentationTask
from mres.parallel.strategy import Strategy
from mres.pretrained.described import Tower
from mres.pretrained.match import Matched
from mres.pretrained.tower import match_tower
from mres.pretrained.whole import match_weights


def first_weights(
    task: SegmentationTask, model: nn.Module, config: Config, say: Callable[[str], None]
) -> Iterable[tuple[str, Tensor]]:
    """Every parameter by name, a later one in place of an earlier of its name; files are matched with the model here.

    Args:
        task: the model's.
        model: names and shapes, before a strategy shards it; it may be on the meta device.
        config: `checkpoint` names files, `run` the seed.
        say: told what was found in them.

    Raises:
        UserError: a file that is not there, is damaged or does not fit.
    """
    strict = config.checkpoint.strict
    found: list[Matched] = []
    if config.checkpoint.init_from:
        source = Path(config.checkpoint.init_from)
        found = [match_weights(model, config.model, source, fit_positions=True, strict=strict)]
    towers: dict[Tower, str | None] = {"text": config.checkpoint.text_weights, "image": config.checkpoint.image_weights}
    found += [
        match_tower(tower, model, config.model, Path(file), strict=strict) for tower, file in towers.items() if file
    ]
    for matched in found:
        say(str(matched.restored))
    whole = config.checkpoint.init_from is not None and not found[0].restored.kept
    return chain(*found) if whole else chain(task.initial_weights(model, config.run.seed), *found)


def named_sources(config: Config) -> str:
    """What `first_weights` takes, for messages."""
    wanted = config.checkpoint
    files = dict.fromkeys(filter(None, (wanted.init_from, wanted.text_weights, wanted.image_weights)))
    return " and ".join(files) or "the seed"


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
