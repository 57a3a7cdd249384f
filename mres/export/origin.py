"""Where weights come from, as facts: origin.json of an exported folder, from which its model card is written.

Everything is read from what a run has left: its config, environment.json, the manifests of its sets and results.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mres.checkpoint.opening import Kind, OpenedWeights
from mres.config import Config, load_config
from mres.credentials import cleaned
from mres.errors import UserError
from mres.evaluate.results import DEFAULT_NAME, ResultsError, names_in, read_results
from mres.formats.folder import manifest_sha256
from mres.io.json_files import JsonError, read_object
from mres.stream.sets import open_set

ORIGIN_NAME = "origin.json"
FORMAT = "mres-origin-1"
_MAX_ANCESTORS = 8

Facts = dict[str, Any]


def origin_of(found: OpenedWeights, config: Config, kind: Kind, results: Sequence[Path] = ()) -> Facts:
    """What is known of the weights in `found`, which `config` trained.

    Of an exported folder it is what was known when that was made, and `results`.

    Args:
        results: folders of evaluations; without them the run's own, where it is of these weights.

    Raises:
        UserError: results of other weights, or that cannot be read; a damaged environment.json.
    """
    assert found.state is not None
    step = int(found.state["step"])
    if (found.path / ORIGIN_NAME).is_file():
        facts = _read_object(found.path / ORIGIN_NAME)
    else:
        run = _run_folder(found.path)
        facts = {
            "format": FORMAT,
            "step": step,
            "weights": found.state.get("weights", kind),
            "model": {key: value for key, value in found.state.get("model", {}).items() if key.startswith("kind")},
            **_training(config, run, found.state, _MAX_ANCESTORS),
            "results": [],
        }
        if run is not None and not results:
            facts["results"], facts["results_left_out"] = _own_results(run, found.path, kind)
    if results:
        facts["results"] = [one for folder in results for one in _given_results(folder, found.path, kind)]
    return facts


def _run_folder(path: Path) -> Path | None:
    """The run that a checkpoint's folder is of."""
    run = path.absolute().parent.parent
    return run if path.absolute().parent.name == "checkpoints" and (run / "config.yaml").is_file() else None


def _read_object(path: Path) -> Facts:
    try:
        return cleaned(read_object(path))
    except (OSError, JsonError) as error:
        raise UserError(f"'{path}' cannot be read: {error}; remove it, and the card does without") from None


def _training(config: Config, run: Path | None, state: Mapping[str, Any], ancestors: int) -> Facts:
    """What a run was trained on and what it started from."""
    path = run / "environment.json" if run is not None else None
    environment = _read_object(path) if path is not None and path.is_file() else {}
    sets = environment.pop("data", None) or _sets_of_config(config, state)
    return {
        "run": config.run.name,
        "environment": environment,
        "data": [_describe(entry["folder"], entry["fingerprint"], config) for entry in sets],
        "started_from": _started_from(config, ancestors),
    }


def _sets_of_config(config: Config, state: Mapping[str, Any]) -> list[Facts]:
    """Without environment.json: the folders of the config; of a single one the checkpoint knows the fingerprint."""
    fingerprint = state.get("stream", {}).get("fingerprint")
    chosen = config.data.train_sets
    return [{"folder": one.path, "fingerprint": fingerprint if len(chosen) == 1 else None} for one in chosen]


def _describe(folder: str, fingerprint: str | None, config: Config) -> Facts:
    """A set by its manifest, if what lies there still is the set that was trained on; else why nothing is known."""
    facts: Facts = {"folder": folder, "fingerprint": fingerprint}
    try:
        manifest = open_set(folder, config.data).manifest
    except UserError as error:
        return {**facts, "unknown": "the set was not at hand when the card was written", "error": str(error)}
    if fingerprint is None:
        return {**facts, "unknown": "the checkpoint does not say which set it was"}
    if manifest.sha256 != fingerprint:
        return {**facts, "unknown": "another set lies there now"}
    leakcheck = manifest.leakcheck
    return {
        **facts,
        "source": manifest.source,
        "images": manifest.counts.images,
        "expressions": manifest.counts.expressions,
        "leakcheck": None if leakcheck is None else leakcheck.model_dump(),
    }


def _started_from(config: Config, ancestors: int) -> Facts | None:
    """The weights that a run began with, and of a run or an exported folder the data that these were trained on."""
    chosen = config.checkpoint
    if chosen.init_from is None:
        towers = {key: getattr(chosen, key, None) for key in ("text_weights", "image_weights")}
        named = {key: path for key, path in towers.items() if path is not None}
        return {"towers": named} if named else None
    path = Path(chosen.init_from)
    facts: Facts = {"weights": chosen.init_from}
    if (path / ORIGIN_NAME).is_file():
        return {**facts, **_read_object(path / ORIGIN_NAME)}
    run = next((folder for folder in (path, _run_folder(path)) if folder and (folder / "config.yaml").is_file()), None)
    if run is None or ancestors == 0:
        return facts
    return {**facts, **_training(load_config(run / "config.yaml", stored=True), run, {}, ancestors - 1)}


def _results_in(folder: Path, name: str, checkpoint: Path, kind: Kind) -> tuple[Facts, str]:
    """What results in a folder say, and what they are of where that is not these weights, else ""."""
    summary, _ = read_results(folder, name)
    evaluated = Path(str(summary["checkpoint"]))
    # The folder may have moved, but not its name and its run's.
    mine, theirs = checkpoint.absolute().parts[-3:], evaluated.absolute().parts[-3:]
    if mine != theirs and checkpoint.absolute() != evaluated.absolute():
        return summary, f"of {'/'.join(theirs)}, not of {'/'.join(mine)}"
    if summary.get("manifest_sha256") not in (None, manifest_sha256(checkpoint)):
        return summary, f"of weights that '{checkpoint}' held before; evaluate again"
    weights = summary.get("weights", "model")
    return summary, "" if weights == kind else f"of the weights '{weights}', not of '{kind}'"


def _own_results(run: Path, checkpoint: Path, kind: Kind) -> tuple[list[Facts], str]:
    """The figures in the run's folder that are of these weights; and why there are none."""
    found = {name: _results_in(run, name, checkpoint, kind) for name in names_in(run)}
    left_out = [f"{name}.json in the run's folder is {other}" for name, (_, other) in found.items() if other]
    taken = [summary for summary, other in found.values() if not other]
    return taken, "" if taken else "; ".join(left_out) or "the run was not evaluated"


def _given_results(folder: Path, checkpoint: Path, kind: Kind) -> list[Facts]:
    found = {name: _results_in(folder, name, checkpoint, kind) for name in names_in(folder) or [DEFAULT_NAME]}
    for name, (_, other) in found.items():
        if other:
            raise ResultsError(
                f"'{folder / name}.json' is {other}; evaluate what is exported: python launch/evaluate.py … --checkpoint "
                f"{checkpoint} --out {folder}"
            )
    return [summary for summary, _ in found.values()]
