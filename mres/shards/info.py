"""Describes a shard set for people and for programs."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from mres.records import GRANULARITIES
from mres.shards.reader import ShardSet
from mres.shards.remote import RemoteOptions

TOP_CATEGORIES = 20


def describe(location: str, remote: RemoteOptions | None = None) -> dict[str, Any]:
    """The manifest's content and what follows from the index: `bytes`, `expressions_per_image` (min, median, max).

    Raises:
        UserError: as `ShardSet` does.
    """
    shards = ShardSet(location, remote)
    per_image = shards.num_expressions_N
    return {
        "folder": location,
        "bytes": sum(shard.bytes for shard in shards.manifest.shards),
        "expressions_per_image": {
            "min": int(per_image.min()),
            "median": float(np.median(per_image)),
            "max": int(per_image.max()),
        },
        **shards.manifest.model_dump(),
    }


def show(location: str, *, as_json: bool, remote: RemoteOptions | None = None) -> int:
    """Prints the description, as tables or as JSON."""
    value = describe(location, remote)
    if as_json:
        print(json.dumps(value, indent=2, ensure_ascii=False))
        return 0
    _print_tables(value)
    return 0


def _print_tables(value: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    about = Table(title=value["folder"], title_justify="left", show_header=False)
    about.add_column()
    about.add_column(overflow="fold")
    for name, text in _about(value):
        about.add_row(name, text)
    kinds = Table("granularity", "kind", "expressions", title="Expressions", title_justify="left")
    for granularity in GRANULARITIES:
        for kind, number in value["counts"]["expressions_by_kind"][granularity].items():
            kinds.add_row(granularity, kind or "(not given)", f"{number:,}")
    title = f"Masks by category (the {TOP_CATEGORIES} most frequent)"
    categories = Table("granularity", "category", "masks", title=title, title_justify="left")
    for *names, number in _frequent(value["counts"]["targets_by_category"]):
        categories.add_row(*names, f"{number:,}")
    for table in (about, kinds, categories):
        console.print(table)


def _about(value: dict[str, Any]) -> list[tuple[str, str]]:
    counts, per_image = value["counts"], value["expressions_per_image"]
    splits = ", ".join(f"{split} {number:,}" for split, number in counts["images_by_split"].items())
    rows = [("images", f"{counts['images']:,} ({splits})")]
    for granularity in GRANULARITIES:
        masks, expressions = counts["targets"][granularity], counts["expressions"][granularity]
        rows.append((granularity, f"{masks:,} masks, {expressions:,} expressions"))
    spread = f"min {per_image['min']}, median {per_image['median']:g}, max {per_image['max']}"
    rows += [
        ("expressions an image", spread),
        ("left out as bad", f"{counts['quarantined']:,}"),
        ("size", f"{value['bytes'] / 1e6:,.1f} MB in {len(value['shards'])} shards"),
        ("made from", json.dumps({k: v for k, v in value["source"].items() if k != "notes"}, ensure_ascii=False)),
        *(("note", f"{message}: {number:,}") for message, number in value["source"].get("notes", {}).items()),
        ("pixels", "upright, 8 bits" if value["options"].get("pixels") == "upright" else "as their files had them"),
        ("options", json.dumps(value["options"])),
        ("leak check", _leaks(value["leakcheck"])),
        ("fingerprint", value["sha256"]),
    ]
    rows += [("part", f"{part['folder']} ({part['sha256'][:12]}…)") for part in value["parts"]]
    return rows + [
        (shard["name"], f"{shard['records']:,} records, sha256 {shard['sha256']}") for shard in value["shards"]
    ]


def _leaks(found: dict[str, Any] | None) -> str:
    if found is None:
        return "not done (python tools/shard.py leakcheck)"
    held_out = ", ".join(f"{name} ({number:,} images)" for name, number in found["against"].items())
    return f"{found['leaks']:,} of {found['images']:,} images are held-out ones of {held_out}"


def _frequent(by_category: dict[str, dict[str, int]]) -> Sequence[tuple[str, str, int]]:
    rows = [(g, category, number) for g in GRANULARITIES for category, number in by_category[g].items()]
    return sorted(rows, key=lambda row: -row[2])[:TOP_CATEGORIES]
