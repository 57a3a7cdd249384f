from dataclasses import replace

import pytest
from rich.console import Console

from mres.evaluate.results import ExpressionResult, summarise
from mres.evaluate.table import cell, kind_rows, print_tables, result_rows

RESULT = ExpressionResult("im/o/0", "im", "o", "object", "car", "colour", "the red car", 1, 4)
RESULTS = [
    *(replace(RESULT, expression_id=f"a{i}") for i in range(1200)),
    replace(RESULT, expression_id="b", kind="size", intersection=4),
    replace(RESULT, expression_id="c", granularity="part", kind="[red]", intersection=0),
]


def summary(**trivial) -> dict:
    return summarise(RESULTS, threshold=0.5, checkpoint="c", data={}, trivial=trivial)


def test_result_rows_are_the_summarys_figures():
    rows = result_rows(summary())
    assert [row[0] for row in rows.rows] == ["object", "part", "object & part"]
    assert rows.rows[0][1:3] == (1201, (1200 / 4 + 1) / 1201)
    assert {len(row) for row in rows.rows} == {len(rows.header)}


def test_kinds_stand_beside_the_trivial_answers_frequent_ones_first():
    rows = kind_rows(summary(whole_object=[replace(RESULTS[-1], union=2, intersection=1)]))
    assert rows.header == ("masks", "kind", "expressions", "model", "whole object for the part")
    assert rows.rows == (
        ("object", "colour", 1200, 0.25, None),
        ("object", "size", 1, 1.0, None),
        ("object", "all", 1201, (1200 / 4 + 1) / 1201, None),
        ("part", "[red]", 1, 0.0, 0.5),
        ("part", "all", 1, 0.0, 0.5),
    )


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "–"), ("[b]", "[b]"), (12345, "12,345"), (0.98765, "0.988"), (1.0, "1.000"), (0, "0")]
)
def test_cells(value, shown):
    assert cell(value) == shown


def test_plain_text_has_no_escapes_and_shows_markup_like_names_as_they_are(capsys):
    print_tables(summary(everything=RESULTS))
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert "[red]" in text
    assert "1,201" in text
    assert "object & part" in text


def test_an_evaluation_without_parts_has_dashes(capsys):
    only_objects = summarise(RESULTS[:2], threshold=0.5, checkpoint="c", data={})
    print_tables(only_objects)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("part")]
    assert line.split() == ["part", "0", *["–"] * 7]


def test_a_narrow_terminal_loses_no_figure():
    with (console := Console(width=80, force_terminal=True)).capture() as captured:
        print_tables(summary(everything=RESULTS), console)
    assert captured.get().count("0.250") >= 4
