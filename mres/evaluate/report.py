"""The report of a run: one self-contained HTML file that works without a network, scripts or other files."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mres.credentials import cleaned
from mres.evaluate import charts
from mres.evaluate.gallery import CASE_GROUPS, gallery
from mres.evaluate.iou import BOTH
from mres.evaluate.overlay import PREDICTION_COLOUR, TRUTH_COLOUR
from mres.evaluate.results import DEFAULT_NAME, ExpressionResult, ResultsError, name_on, read_results
from mres.evaluate.table import GROUP_LABELS, cell, kind_rows, result_rows
from mres.formats.folder import manifest_sha256, saved_config
from mres.io.files import write_atomically
from mres.io.json_files import JsonError, read_jsonl, read_object
from mres.records import GRANULARITIES
from mres.shards.reader import ShardSet

TRIVIAL_NOTES = {
    "everything": "every pixel of the image",
    "constant_mask": "the mean training mask (objects and parts apart), cut where it does best",
    "all_objects": "the union of all objects",
    "whole_object": "for a part, the object that it belongs to",
    "same_category": "every instance of the right category: what is reached without telling instances apart",
}


def write_report(run_dir: Path, shards: ShardSet) -> Path:
    """Writes `run_dir`/report/index.html and returns its path; of results-test.json, it is report/results-test.html.

    Args:
        run_dir: a run's folder with results.json and results.jsonl; metrics.jsonl, evaluations.jsonl, config.yaml and
            environment.json are shown where they exist.
        shards: the set that was evaluated.

    Raises:
        ResultsError: results are missing or damaged, or were made on another set.
    """
    if not run_dir.is_dir():
        raise ResultsError(f"no run at '{run_dir}'; name the folder of a run, such as runs/demo")
    name = name_on(run_dir, shards.fingerprint)
    summary, results = read_results(run_dir, name)
    evaluated = summary["data"]
    if (fingerprint := evaluated.get("fingerprint", shards.fingerprint)) != shards.fingerprint:
        raise ResultsError(
            f"'{shards.location}' is not the shard set that '{run_dir}' was evaluated on: that was "
            f"'{evaluated.get('folder')}', fingerprint {fingerprint}; name it, or evaluate again"
        )
    checkpoint = Path(str(summary["checkpoint"]))
    if summary.get("manifest_sha256") not in (None, manifest_sha256(checkpoint)) and checkpoint.is_dir():
        raise ResultsError(f"{name}.json in '{run_dir}' is of weights that '{checkpoint}' held before; evaluate again")
    page = _render(run_dir, name, summary, results, shards)
    path = run_dir / "report" / ("index.html" if name == DEFAULT_NAME else f"{name}.html")
    path.parent.mkdir(exist_ok=True)
    # A lone surrogate in an expression must not cost the report.
    write_atomically(path, page.encode("utf-8", "replace"))
    return path


def _environment(path: Path) -> Mapping[str, Any]:
    try:
        return cleaned(read_object(path)) if path.is_file() else {}
    except JsonError as error:
        raise ResultsError(f"{error}; remove it, or train again") from None


def _lines(path: Path) -> list[Mapping[str, Any]]:
    """The lines of a JSONL file by steps; the last one may be cut off, for a run may still be writing it."""
    lines: list[Mapping[str, Any]] = []
    try:
        for where, line in read_jsonl(path, may_be_cut=True) if path.is_file() else ():
            if type(line.get("step")) is not int:
                raise JsonError(f'{where}: expected a whole "step"')
            lines.append(line)
    except JsonError as error:
        raise ResultsError(f"{error}; remove the line") from None
    return lines


def _render(
    run_dir: Path, results_name: str, summary: Mapping[str, Any], results: Sequence[ExpressionResult], shards: ShardSet
) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    metrics, config = _lines(run_dir / "metrics.jsonl"), run_dir / "config.yaml"
    ious: dict[str, list[float]] = {name: [] for name in GRANULARITIES}
    for result in results:
        ious[result.granularity].append(result.iou)
    environment = Environment(
        loader=PackageLoader("mres.evaluate"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": cell, "svg": Markup, "percent": lambda value: f"{100 * value:.1f}%"}
    return environment.get_template("report.html.j2").render(
        name=run_dir.resolve().name,
        summary=summary,
        both=summary[BOTH],
        num_images=len({result.image_id for result in results}),
        labels=GROUP_LABELS,
        result_table=result_rows(summary),
        kind_table=kind_rows(summary),
        trivial_notes=[TRIVIAL_NOTES[name] for name in summary["trivial"] if name in TRIVIAL_NOTES],
        training=_training(metrics),
        curves=charts.training_charts(metrics),
        iou_charts=charts.iou_charts(_lines(run_dir / "evaluations.jsonl"), ious),
        groups=gallery(results, shards),
        places=CASE_GROUPS,
        colours={"truth": f"#{bytes(TRUTH_COLOUR).hex()}", "prediction": f"#{bytes(PREDICTION_COLOUR).hex()}"},
        results_name=results_name,
        facts=_facts(run_dir, results_name, summary, shards),
        config=saved_config(config) if config.is_file() else "",
    )


def _training(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What the training came to, in a few figures."""
    if not metrics:
        return []
    last = metrics[-1]
    facts = [("steps", f"{last['step']:,}")]
    facts += [(text, f"{last[key]:,.{digits}f}") for key, text, digits in _LAST_FIGURES if _is_number(last.get(key))]
    for key, text in (("images_per_s", "images/s"), ("expressions_per_s", "expressions/s")):
        values = [line[key] for line in metrics if _is_number(line.get(key))]
        if values:
            facts.append((f"{text} (median)", f"{statistics.median(values):,.1f}"))
    timed = [line for line in metrics if _is_number(line.get("step_s")) and _is_number(line.get("data_wait_s"))]
    if total := sum(line["step_s"] for line in timed):
        waited = sum(line["data_wait_s"] for line in timed)
        facts.append(("waited for data", f"{100 * waited / total:.1f} % of the time"))
    return facts


_LAST_FIGURES = (("epoch", "epochs", 1), ("expressions_seen", "expressions seen", 0), ("loss", "last loss", 4))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _facts(run_dir: Path, name: str, summary: Mapping[str, Any], shards: ShardSet) -> list[tuple[str, str]]:
    """What was evaluated, when, and what it ran on."""
    written = datetime.fromtimestamp((run_dir / f"{name}.jsonl").stat().st_mtime, timezone.utc)
    facts = [
        ("run folder", str(run_dir)),
        ("checkpoint", str(summary["checkpoint"])),
        ("weights", "their moving average" if summary.get("weights") == "ema" else "as trained"),
        ("evaluated on", str(summary["data"].get("folder", shards.location))),
        ("split", str(summary["data"].get("split", ""))),
        ("evaluated at", f"{written:%Y-%m-%d %H:%M:%S} UTC"),
        ("images in the set", f"{shards.manifest.counts.images:,}"),
        ("data fingerprint", shards.fingerprint),
    ]
    environment = _environment(run_dir / "environment.json")
    return [(name, text) for name, text in facts if text] + list(_flat(environment))


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested names and values as ("packages: torch", "2.6.0")."""
    facts = []
    for key, item in value.items():
        name = f"{prefix}{str(key).replace('_', ' ')}"
        facts += _flat(item, f"{name}: ") if isinstance(item, Mapping) else [(name, "–" if item is None else str(item))]
    return facts
