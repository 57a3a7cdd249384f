"""The results of an evaluation: one line an expression (results.jsonl) and the figures that follow (results.json)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mres.credentials import cleaned
from mres.errors import UserError, near, shown
from mres.evaluate.iou import PROTOCOL, all_figures_of, iou
from mres.io.files import write_atomically
from mres.io.json_files import JsonError, read_json, read_jsonl
from mres.record_checks import is_source_id
from mres.records import GRANULARITIES, Granularity, ImageRecord, Rle, SourceId, Target, expression_id

SUMMARY_NAME = "results.json"
LINES_NAME = "results.jsonl"
_NAMED_IDS = 3  # how many ids a message lists
_TEXTS = ("expression_id", "image_id", "target_id", "category", "kind", "text")
_OF_SOURCE = ("ref_id", "ann_id", "sent_id", "sent_index")
_FLAGS = ("no_target", "cut")


class ResultsError(UserError):
    """Results that cannot be used; the message names the file or the expressions, what was found and the remedy."""


@dataclass(frozen=True, slots=True)
class ExpressionResult:
    """What came of one expression; intersection and union in pixels of the original image.

    `prediction` is the predicted mask, kept where the evaluation was asked to (`evaluate.save_masks`). `ref_id`, `ann_id`,
    `sent_id` and `sent_index` are the source's, as `Target` and `Expression` have them, so that results can be joined with
    those of other programs; `no_target` says that nothing in the image is meant, `cut` that the expression is longer than
    the model reads and lost its end.
    """

    expression_id: str
    image_id: str
    target_id: str
    granularity: Granularity
    category: str
    kind: str
    text: str
    intersection: int
    union: int
    prediction: Rle | None = None
    ref_id: SourceId | None = None
    ann_id: SourceId | tuple[SourceId, ...] | None = None
    sent_id: SourceId | None = None
    sent_index: int | None = None
    no_target: bool = False
    cut: bool = False

    @classmethod
    def of(
        cls,
        record: ImageRecord,
        target: Target,
        index: int,
        areas: tuple[int, int],
        prediction: Rle | None = None,
        *,
        cut: bool = False,
    ) -> ExpressionResult:
        """The result of expression `index` of `target`; `areas` = (intersection, union)."""
        expression = target.expressions[index]
        return cls(
            expression_id=expression_id(record, target, index),
            image_id=record.id,
            target_id=target.id,
            granularity=target.granularity,
            category=target.category,
            kind=expression.kind,
            text=expression.text,
            intersection=areas[0],
            union=areas[1],
            prediction=prediction,
            ref_id=target.ref_id,
            ann_id=target.ann_id,
            sent_id=expression.sent_id,
            sent_index=expression.sent_index,
            no_target=target.no_target,
            cut=cut,
        )

    @property
    def iou(self) -> float:
        return iou(self.intersection, self.union)

    def to_json(self) -> dict[str, Any]:
        value = {name: getattr(self, name) for name in (*_TEXTS, "granularity", "intersection", "union")}
        value |= {name: found for name in _OF_SOURCE if (found := getattr(self, name)) is not None}
        value |= {name: True for name in _FLAGS if getattr(self, name)}
        if self.prediction is not None:
            value["prediction"] = self.prediction.to_json()
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str) -> ExpressionResult:
        """The result of one parsed line, its fields checked.

        Raises:
            ResultsError: naming `where`, the field, what was found and what is allowed.
        """
        known = {*_TEXTS, *_OF_SOURCE, "granularity", "intersection", "union", "prediction", *_FLAGS}
        if unknown := sorted(set(value) - known):
            raise ResultsError(f"{where}: unknown field {unknown[0]!r}; {near(unknown[0], sorted(known))}")
        for name in _TEXTS:
            if not isinstance(value.get(name), str):
                raise _wrong(where, name, value.get(name), "a string")
        if value.get("granularity") not in GRANULARITIES:
            raise _wrong(where, "granularity", value.get("granularity"), f"one of {', '.join(GRANULARITIES)}")
        intersection, union = value.get("intersection"), value.get("union")
        if type(intersection) is not int or type(union) is not int or not 0 <= intersection <= union:
            raise _wrong(where, "intersection, union", (intersection, union), "0 <= intersection <= union, in pixels")
        return cls(
            **{name: value[name] for name in _TEXTS},
            granularity=value["granularity"],
            intersection=intersection,
            union=union,
            prediction=_mask(value.get("prediction"), where),
            **_further(value, where),
        )


def _further(value: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What is there of the source's ids, and the flags."""
    found = {name: value[name] for name in (*_OF_SOURCE, *_FLAGS) if name in value}
    for name, id_ in found.items():
        if isinstance(id_, list) and name == "ann_id" and all(map(is_source_id, id_)):
            found[name] = tuple(id_)
        elif not (isinstance(id_, bool) if name in _FLAGS else is_source_id(id_)):
            raise _wrong(where, name, id_, "true or false" if name in _FLAGS else "a whole number, or text")
    return found


def num_cut(results: Iterable[ExpressionResult]) -> int:
    """How many expressions are longer than the model reads."""
    return sum(result.cut for result in results)


def _mask(value: Any, where: str) -> Rle | None:
    if value is None:
        return None
    allowed = 'a COCO RLE {"size": [height, width], "counts": "…"}'
    if not isinstance(value, Mapping) or set(value) != {"size", "counts"}:
        raise _wrong(where, "prediction", value, allowed)
    size, counts = value["size"], value["counts"]
    if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
        raise _wrong(where, "prediction.size", size, allowed)
    if not isinstance(counts, str) or not counts.isascii():
        raise _wrong(where, "prediction.counts", counts, allowed)
    return Rle(size[0], size[1], counts.encode("ascii"))


def _wrong(where: str, field: str, found: Any, allowed: str) -> ResultsError:
    return ResultsError(f"{where}: field {field!r}: found {shown(found)}, expected {allowed}")


def merge_results(parts: Iterable[Iterable[ExpressionResult]], expected_ids: Sequence[str]) -> list[ExpressionResult]:
    """The ranks' results as one list in the order of `expected_ids`, each expression exactly once.

    Raises:
        ResultsError: naming what is missing, there twice, or not expected.
    """
    results = [result for part in parts for result in part]
    found, expected = Counter(result.expression_id for result in results), Counter(expected_ids)
    problems = {
        "missing": expected - found,
        "evaluated more than once": +Counter({id_: found[id_] - 1 for id_ in found}),
        "not in the data set": found.keys() - expected.keys(),
        "given twice by the data set": +Counter({id_: expected[id_] - 1 for id_ in expected}),
    }
    texts = [f"{len(ids)} {what} ({_some(ids)})" for what, ids in problems.items() if ids]
    if texts:
        raise ResultsError(
            f"each of the {len(expected_ids)} expressions must be there exactly once: {'; '.join(texts)}"
        )
    by_id = {result.expression_id: result for result in results}
    return [by_id[id_] for id_ in expected_ids]


def _some(ids: Iterable[str]) -> str:
    named = sorted(ids)
    return ", ".join(named[:_NAMED_IDS]) + (", …" if len(named) > _NAMED_IDS else "")


def summarise(
    results: Sequence[ExpressionResult],
    *,
    threshold: float,
    checkpoint: str,
    data: Mapping[str, Any],
    weights: str = "model",
    trivial: Mapping[str, Sequence[ExpressionResult]] | None = None,
) -> dict[str, Any]:
    """The content of results.json.

    Args:
        results: every expression of the set once.
        threshold: probability from which a pixel was foreground.
        checkpoint: the checkpoint's folder, as the user may find it again.
        weights: which of the checkpoint's, "model" or "ema".
        data: the set: "folder", "fingerprint" (`ShardSet.fingerprint`), "split".
        trivial: trivial answers to the same expressions by name (`mres.evaluate.trivial`).
    """
    return {
        "protocol": {"threshold": threshold, **PROTOCOL},
        "num_expressions": len(results),
        "cut_expressions": num_cut(results),
        **all_figures_of(results),
        "trivial": {name: all_figures_of(answers) for name, answers in (trivial or {}).items()},
        "checkpoint": checkpoint,
        "weights": weights,
        "data": dict(data),
    }


def write_results(folder: Path, results: Iterable[ExpressionResult], summary: Mapping[str, Any]) -> None:
    """Writes results.jsonl, then results.json, each whole or not at all."""
    lines = (json.dumps(result.to_json()) + "\n" for result in results)
    write_atomically(folder / LINES_NAME, "".join(lines).encode())
    write_atomically(folder / SUMMARY_NAME, (json.dumps(summary, indent=1, allow_nan=False) + "\n").encode())


def read_results(folder: Path) -> tuple[dict[str, Any], list[ExpressionResult]]:
    """The (results.json, results.jsonl) that `write_results` left in `folder`, checked against each other.

    Raises:
        ResultsError: one is missing, damaged, or they are not of the same evaluation.
    """
    for name in (SUMMARY_NAME, LINES_NAME):
        if not (folder / name).is_file():
            raise ResultsError(f"no {name} in '{folder}'; python launch/evaluate.py writes it")
    try:
        summary = cleaned(read_json(folder / SUMMARY_NAME))
        results = [ExpressionResult.from_json(value, where) for where, value in read_jsonl(folder / LINES_NAME)]
    except (JsonError, OSError) as error:
        raise ResultsError(f"{error}; evaluate again") from None
    figures = {"num_expressions": len(results), **all_figures_of(results)}
    if isinstance(summary, dict) and "cut_expressions" in summary:  # of an earlier version, nobody knows
        figures["cut_expressions"] = num_cut(results)
    complete = isinstance(summary, dict) and summary.keys() >= {"protocol", "trivial", "checkpoint", "data"}
    if not complete or any(summary.get(key) != value for key, value in figures.items()):
        raise ResultsError(f"'{folder}': {SUMMARY_NAME} does not follow from {LINES_NAME}; evaluate again")
    return summary, results
