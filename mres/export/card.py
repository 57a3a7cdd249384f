"""The model card of an exported folder: README.md with the front matter that model hubs read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import yaml

from mres.config import Config
from mres.errors import UserError
from mres.evaluate.iou import GROUPS
from mres.evaluate.table import GROUP_LABELS, cell, result_rows
from mres.evaluate.trivial import TRIVIAL_LABELS
from mres.export.origin import ORIGIN_NAME, Facts
from mres.model.spec import ModelSpec, load_spec, origin_of_kind

CARD_NAME = "README.md"
_BESIDE = ("constant_mask", "same_category")  # trivial answers that a figure is to be compared with


def render_card(config: Config, origin: Facts, files: Mapping[str, int], num_parameters: int) -> str:
    """The card.

    Args:
        config: what the weights were trained with.
        origin: `origin_of`, and under "programs" what `compare` found of each.
        files: the folder's other files, in bytes.
        num_parameters: of the model.

    Raises:
        UserError: what is known was edited, and is not of the form that mres writes.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined, TemplateError

    spec = load_spec(config.model.kind)
    environment = Environment(
        loader=PackageLoader("mres.export"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"text": plain, "code": code, "short": short_name, "leaks": leaks_of}
    try:
        return environment.get_template("model_card.md.j2").render(
            front_matter=yaml.safe_dump(front_matter(config, origin), sort_keys=False, allow_unicode=True).rstrip(),
            config=config,
            spec=spec,
            kind=_kind(config, origin),
            shape=spec.shape(config.model),
            origin=origin,
            files=files,
            num_parameters=num_parameters,
            recipe=recipe(config, origin),
            tables=[(summary, *result_table(summary)) for summary in origin["results"]],
        )
    except (TemplateError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"what is known of the weights ({ORIGIN_NAME}, environment.json, results) is not what mres writes: {error}; "
            "remove what was edited"
        ) from None


def _kind(config: Config, origin: Facts) -> dict[str, str]:
    """The kind that was trained, and file and SHA-256 of one that does not come with mres; no folders."""
    known = {"kind": config.model.kind, **origin_of_kind(config.model.kind), **origin.get("model", {})}
    return {key.removeprefix("kind_"): PurePath(value).name for key, value in known.items()}


def short_name(folder: str) -> str:
    """The last two parts of where a set lies: enough to know it by, and nothing of the machine."""
    return "/".join(PurePath(_line(folder)).parts[-2:])


def plain(text: object) -> str:
    """A text that came from outside, as a text: it stays in its line and its cell, and is neither HTML nor Markdown."""
    escaped = re.sub(r"([\\`*\[\]|~])", r"\\\1", _line(text))
    return re.sub(r"&(?=#?\w+;)", "&amp;", escaped).replace("<", "&lt;")


def code(text: object) -> str:
    """A text from outside that stands between backticks, or quotes in a block of code."""
    return re.sub(r"[`|\"]", "'", _line(text))


def _line(text: object) -> str:
    return "".join(character if character.isprintable() else " " for character in str(text))


def front_matter(config: Config, origin: Facts) -> dict[str, Any]:
    """What hubs index, the figures among it. The licence is the owner's to add."""
    front: dict[str, Any] = {
        "library_name": "mres",
        "pipeline_tag": "image-segmentation",
        "tags": ["referring-expression-segmentation", "part-segmentation", load_spec(config.model.kind).name.lower()],
    }
    if origin["results"]:
        results = [_indexed(summary) for summary in origin["results"]]
        front["model-index"] = [{"name": config.run.name, "results": results}]
    return front


def _indexed(summary: Mapping[str, Any]) -> dict[str, Any]:
    data = summary["data"]
    figures = [(group, name) for group in GROUPS for name in ("mIoU", "oIoU") if summary[group][name] is not None]
    return {
        "task": {"type": "image-segmentation", "name": "referring-expression segmentation"},
        "dataset": {
            "name": short_name(data["folder"]),
            "type": short_name(data["folder"]),
            "split": data["split"],
            "revision": data["fingerprint"],
        },
        "metrics": [
            {"type": name, "name": f"{name}, {GROUP_LABELS[group]}", "value": round(summary[group][name], 4)}
            for group, name in figures
        ],
    }


def leaks_of(data: Facts) -> str:
    """What is known about held-out images in a set that was trained on."""
    if "unknown" in data:
        return f"not known: {plain(data['unknown'])}"
    check = data["leakcheck"]
    if check is None:
        return "**not checked** (`tools/shard.py leakcheck`)"
    against = ", ".join(f"{plain(name)}: {count:,}" for name, count in check["against"].items())
    return (
        f"**{check['leaks']:,} of {check['images']:,}** images ({check['by_id']:,} by COCO id, {check['by_hash']:,} by "
        f"perceptual hash, distance up to {check['max_distance']}) are held-out ones; compared with {against} images"
    )


def result_table(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the figures by granularity, and beside them the mIoU of answers that need no training."""
    table = result_rows(summary)
    trivial = {name: summary["trivial"][name] for name in _BESIDE if name in summary["trivial"]}
    header = [*table.header, *(f"mIoU of “{TRIVIAL_LABELS[name]}”" for name in trivial)]
    return header, [
        [cell(value) for value in (*row, *(figures[group]["mIoU"] for figures in trivial.values()))]
        for group, row in zip(GROUPS, table.rows, strict=True)
    ]


def recipe(config: Config, origin: Facts) -> list[tuple[str, str]]:
    """How the weights were trained, as rows of two."""
    data, optim, parallel = config.data, config.optim, config.parallel
    strategy = parallel.strategy + (f", stage {parallel.zero_stage}" if parallel.strategy == "zero" else "")
    ranks = origin["environment"].get("world_size")
    warmup = (
        f"{optim.warmup_epochs:g} epochs" if optim.warmup_epochs is not None else f"{optim.warmup_steps or 1000} steps"
    )
    rows = [
        ("steps", f"{origin['step']:,}"),
        ("weights", "moving average of the weights" if origin["weights"] == "ema" else "as trained"),
        ("batch", f"{data.images_per_batch} images × up to {data.expressions_per_image} expressions"),
        ("optimizer", f"AdamW, weight decay {optim.weight_decay:g}, gradients clipped at norm {optim.max_grad_norm:g}"),
        ("learning rate", f"{optim.lr:g}, warm-up of {warmup}, cosine to {optim.min_lr:g}"),
        ("loss", _loss(config)),
        ("strategy", strategy + (f", {ranks} process(es)" if ranks else "")),
        ("precision", f"{parallel.compute_dtype} over float32 masters"),
        ("seed", str(config.run.seed)),
    ]
    if optim.freeze:
        rows.append(("frozen", ", ".join(optim.freeze)))
    return rows


def _loss(config: Config) -> str:
    if load_spec(config.model.kind).losses is not ModelSpec.losses:
        return "the model's own"
    return f"{config.loss.bce_weight:g} × binary cross-entropy + {config.loss.dice_weight:g} × Dice"
