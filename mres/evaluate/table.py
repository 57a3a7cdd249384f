"""The result tables: by granularity, and by kind of expression beside the trivial answers."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mres.evaluate.iou import BOTH, FIGURES, GROUPS
from mres.evaluate.trivial import TRIVIAL_LABELS
from mres.records import GRANULARITIES

if TYPE_CHECKING:
    from rich.console import Console

GROUP_LABELS = {"object": "object", "part": "part", BOTH: "object & part"}
NO_KIND = "(not given)"
ALL_KINDS = "all"
_PLAIN_WIDTH = 140


@dataclass(frozen=True, slots=True)
class Rows:
    """A table: the first `num_texts` columns are texts, the others figures (a whole number, 0–1, or None for none).

    `sections` are the positions of rows that begin a new section.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str | float | None, ...], ...]
    num_texts: int
    sections: tuple[int, ...] = ()


def result_rows(summary: Mapping[str, Any]) -> Rows:
    """mIoU, oIoU and P@X of object, part and both, from the content of results.json."""
    rows = tuple(
        (GROUP_LABELS[name], summary[name]["num"], *(summary[name][figure] for figure in FIGURES)) for name in GROUPS
    )
    return Rows("Results", ("masks", "expressions", *FIGURES), rows, num_texts=1)


def kind_rows(summary: Mapping[str, Any]) -> Rows:
    """mIoU by kind of expression, the model's beside the trivial answers'; frequent kinds first."""
    trivial = summary.get("trivial", {})
    rows: list[tuple[str | float | None, ...]] = []
    sections = []
    for granularity in GRANULARITIES:
        kinds = summary["by_kind"][granularity]
        sections.append(len(rows))
        frequent = sorted(kinds, key=lambda kind: (-kinds[kind]["num"], kind))
        for kind in (*frequent, None) if kinds else ():
            of_model, *others = (
                of[granularity] if kind is None else of["by_kind"][granularity].get(kind, {"mIoU": None, "num": 0})
                for of in (summary, *trivial.values())
            )
            label = ALL_KINDS if kind is None else kind or NO_KIND
            rows.append((granularity, label, of_model["num"], of_model["mIoU"], *(other["mIoU"] for other in others)))
    header = ("masks", "kind", "expressions", "model", *(TRIVIAL_LABELS.get(name, name) for name in trivial))
    return Rows("mIoU by kind of expression", header, tuple(rows), num_texts=2, sections=tuple(sections[1:]))


def cell(value: str | float | None) -> str:
    """How a table shows a value: texts as they are, whole numbers with separators, others with three decimals."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def print_tables(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Both tables on a terminal, or as plain text into anything else."""
    from rich.console import Console

    if console is None:
        console = Console() if sys.stdout.isatty() else Console(width=_PLAIN_WIDTH)
    for number, rows in enumerate((result_rows(summary), kind_rows(summary))):
        if number:
            console.print()
        _print(rows, console)


def _print(rows: Rows, console: Console) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=rows.title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold", pad_edge=False)
    for number, name in enumerate(rows.header):
        table.add_column(Text(name), justify="left" if number < rows.num_texts else "right")
    for number, row in enumerate(rows.rows):
        if number in rows.sections:
            table.add_section()
        strong = row[rows.num_texts - 1] in (ALL_KINDS, GROUP_LABELS[BOTH])
        # Texts, which rich does not read for markup: kinds are the user's.
        table.add_row(*(Text(cell(value)) for value in row), style="bold" if strong else None)
    console.print(table)
