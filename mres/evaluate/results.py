"""The results of an evaluation: one line an expression (results.jsonl) and the figures that follow (results.json)."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mres.credentials import cleaned
from mres.errors import UserError, near, shown
from mres.evaluate.iou import PROTOCOL, all_figures_of, iou
from mres.io.files import part_of, write_together
from mres.io.json_files import JsonError, read_json, read_jsonl
from mres.record_checks import is_source_id
from mres.records import GRANULARITIES, Granularity, ImageRecord, Rle, SourceId, Target, expression_id

DEFAULT_NAME = "results"  # of the figures and lines on the validation set
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
    manifest_sha256: str | None = None,
    trivial: Mapping[str, Sequence[ExpressionResult]] | None = None,
) -> dict[str, Any]:
    """The content of results.json.

    Args:
        results: every expression of the set once.
        threshold: probability from which a pixel was foreground.
        checkpoint: the checkpoint's folder, as the user may find it again.
        weights: which of the checkpoint's, "model" or "ema".
        manifest_sha256: of the checkpoint's MANIFEST.json: a run that starts again writes others under the same name.
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
        "manifest_sha256": manifest_sha256,
        "weights": weights,
        "data": dict(data),
    }


def name_for(folder: Path, data: Mapping[str, Any]) -> str:
    """What results on the set `data` are called in `folder`, but for .json and .jsonl: those of other sets stay."""
    plain = DEFAULT_NAME if data["split"] == "val" else f"{DEFAULT_NAME}-{data['split']}"
    there = _data_of(folder / f"{plain}.json")
    fingerprint = str(data["fingerprint"])
    if not there or there.get("fingerprint", fingerprint) == fingerprint:
        return plain
    # Of the same folder, they are of a set that was built again since.
    same = os.path.realpath(str(there.get("folder"))) == os.path.realpath(str(data["folder"]))
    return plain if same else f"{plain}-{fingerprint[:8]}"


def names_in(folder: Path) -> list[str]:
    """What the results in `folder` are called, those of the validation set first."""
    summaries = {path.stem: path.with_suffix(".json") for path in folder.glob(f"{DEFAULT_NAME}*.jsonl")}
    found = {name for name, path in summaries.items() if path.is_file() or part_of(path).is_file()}
    return sorted(found, key=lambda name: (name != DEFAULT_NAME, name))


def name_on(folder: Path, fingerprint: str) -> str:
    """Of the results in `folder`, those on the set of that fingerprint; where there are none, the validation set's."""
    named = {name: _data_of(folder / f"{name}.json").get("fingerprint") for name in names_in(folder)}
    return next((name for name, found in named.items() if found == fingerprint), DEFAULT_NAME)


def others(folder: Path, name: str, summary: Mapping[str, Any]) -> str | None:
    """What the results of that name in `folder` are of, where that is something else than `summary` is of."""
    there = _summary_of(folder / f"{name}.json")
    same = not there or _identity(there) == _identity(summary)
    return None if same else f"'{there.get('checkpoint')}' ({there.get('weights', 'model')})"


def _identity(summary: Mapping[str, Any]) -> tuple[Any, ...]:
    protocol = summary.get("protocol")
    threshold = protocol.get("threshold") if isinstance(protocol, Mapping) else None
    return summary.get("manifest_sha256") or summary.get("checkpoint"), summary.get("weights", "model"), threshold


def _data_of(path: Path) -> dict[str, Any]:
    """The set that results are of, as far as they say it."""
    data = _summary_of(path).get("data")
    return data if isinstance(data, dict) else {}


def _summary_of(path: Path) -> dict[str, Any]:
    """What results say of themselves, or what a killed writer has left aside of it (`read_results`); {} of none."""
    for place in (path, part_of(path)):
        try:
            summary = read_json(place)
        except (OSError, JsonError):
            continue
        return summary if isinstance(summary, dict) else {}
    return {}


def write_results(
    folder: Path, results: Iterable[ExpressionResult], summary: Mapping[str, Any], name: str = DEFAULT_NAME
) -> None:
    """Writes `name`.jsonl and `name`.json, each whole or as it was; a kill between them loses neither (`read_results`)."""
    lines = (json.dumps(result.to_json()) + "\n" for result in results)
    content = json.dumps(summary, indent=1, allow_nan=False) + "\n"
    write_together({folder / f"{name}.jsonl": "".join(lines).encode(), folder / f"{name}.json": content.encode()})


def read_results(folder: Path, name: str = DEFAULT_NAME) -> tuple[dict[str, Any], list[ExpressionResult]]:
    """The (`name`.json, `name`.jsonl) that `write_results` left in `folder`, checked against each other.

    Raises:
        ResultsError: one is missing, damaged, or they are not of the same evaluation.
    """
    summary_path, lines_path = folder / f"{name}.json", folder / f"{name}.jsonl"
    if not lines_path.is_file() or not (summary_path.is_file() or part_of(summary_path).is_file()):
        missing = lines_path if summary_path.is_file() else summary_path
        raise ResultsError(f"no {missing.name} in '{folder}'; python launch/evaluate.py writes it")
    try:
        results = [ExpressionResult.from_json(value, where) for where, value in read_jsonl(lines_path)]
        # A writer that was killed between its two files has left the second aside.
        for path in (summary_path, part_of(summary_path)):
            summary = cleaned(read_json(path)) if path.is_file() else None
            if summary is not None and _follows(summary, results):
                return summary, results
    except (JsonError, OSError) as error:
        raise ResultsError(f"{error}; evaluate again") from None
    raise ResultsError(f"'{folder}': {summary_path.name} does not follow from {lines_path.name}; evaluate again")


def _follows(summary: Any, results: Sequence[ExpressionResult]) -> bool:
    """Whether the figures are those of the results."""
    if not isinstance(summary, dict) or not summary.keys() >= {"protocol", "trivial", "checkpoint", "data"}:
        return False
    figures = {"num_expressions": len(results), **all_figures_of(results)}
    if "cut_expressions" in summary:  # of an earlier version, nobody knows
        figures["cut_expressions"] = num_cut(results)
    return all(summary.get(key) == value for key, value in figures.items())
