"""A whole model's weights, from a run, a checkpoint, an exported folder or a .safetensors file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from mres.checkpoint.opening import Kind, open_weights
from mres.config import Config, load_config
from mres.errors import UserError
from mres.formats.folder import CONFIG, Checkpoint, CheckpointError
from mres.formats.weights import Weights
from mres.io.yaml_files import parse_yaml
from mres.model.buffers import named_tensors
from mres.model.config import DEFAULT_KIND, ModelConfig
from mres.model.spec import KINDS, is_same_kind, load_spec, origin_of_kind
from mres.pretrained.families import change_of_positions
from mres.pretrained.match import Matched, copy_into, fit
from mres.pretrained.positions import Change
from mres.pretrained.report import Restored, summary
from mres.pretrained.wrappers import one_prefix, plain_names, prefixes_before, without_prefix


def load_weights(model: nn.Module, config: ModelConfig, source: Path, kind: Kind = "model") -> Restored:
    """`match_weights`, copied into a model that has memory."""
    return copy_into(model, match_weights(model, config, source, kind))


def match_weights(
    model: nn.Module,
    config: ModelConfig,
    source: Path,
    kind: Kind = "model",
    *,
    fit_positions: bool = False,
    strict: bool = True,
) -> Matched:
    """Weights for every parameter of the model.

    Args:
        model: names and shapes; it may be on the meta device.
        config: what `model` was built from; compared with the source's own where that has one.
        source: a run's folder, a checkpoint's, an exported folder or a .safetensors file.
        kind: the weights, or their moving average.
        fit_positions: the source may be of another image size or a longer text length; its positions are made to fit.
        strict: every parameter comes from `source`, and nothing of it is left; else both may be otherwise, and only the
            shapes of what has a place must agree.

    Raises:
        CheckpointError: nothing there, damaged, or of another model (the first differing keys or tensors are named).
    """
    found = open_weights(source, kind)
    if strict and found.state is not None:
        _check_same(found.state.get("model", {}), config, found.path, fit_positions=fit_positions, may_change=True)
    weights = unwrapped(found.weights, model, f"'{found.path}'")
    changes = _changes(weights.shapes, model, config, str(found.path)) if fit_positions else {}
    shapes = weights.shapes | {name: change.shape for name, change in changes.items()}
    fitting = fit(model, shapes, str(found.path), strict=strict)
    restored = replace(
        fitting.restored,
        changed=tuple(change.note for change in changes.values()),
        left_behind=summary(fitting.unknown),
        notes=notes_on_kind(found.state or {}, config),
    )
    return Matched(restored, _changed(weights, changes), fitting.own_names)


def unwrapped(weights: Weights, model: nn.Module, source: str) -> Weights:
    """By the model's names, without what wrapped it in training; what does not begin as the model does keeps its name.

    Raises:
        CheckpointError: the model is there several times, or two tensors would have one name.
    """
    own = named_tensors(model).keys() | dict(model.named_parameters(remove_duplicate=False)).keys()
    if own >= weights.shapes.keys():
        return weights
    names = plain_names(weights.shapes, source)
    counts = prefixes_before(names, own)
    most = max(counts.values(), default=0)
    if 2 * most < len(own) or counts[""] == most:
        return weights.renamed(names) if counts[""] == most else weights
    prefix = one_prefix((prefix for prefix, count in counts.items() if count == most), source, "the model")
    outside = {name: there for name, there in names.items() if not name.startswith(prefix)}
    inside = without_prefix(names, prefix)
    if both := sorted(inside.keys() & outside):
        raise CheckpointError(
            f"{source} is ambiguous: {both[0]} stands in it also as {prefix}{both[0]}; save the one you mean alone"
        )
    return weights.renamed(inside | outside)


def _changes(shapes: Mapping[str, torch.Size], model: nn.Module, config: ModelConfig, source: str) -> dict[str, Change]:
    """What makes the positions of the model's towers fit, by the model's names."""
    spec = load_spec(config.kind)
    changes = {}
    for tower in filter(None, (spec.image_weights, spec.text_weights)):
        own = {n.removeprefix(f"{tower.prefix}."): s for n, s in shapes.items() if n.startswith(f"{tower.prefix}.")}
        found = change_of_positions(tower.family, own, model, tower.prefix, source)
        if found is not None:
            changes[f"{tower.prefix}.{found[0]}"] = found[1]
    return changes


def _changed(weights: Weights, changes: Mapping[str, Change]) -> Iterator[tuple[str, Tensor]]:
    for name, value in weights:
        yield name, changes[name].apply(value) if name in changes else value


def check_same_model(checkpoint: Checkpoint, config: ModelConfig) -> tuple[str, ...]:
    """Refuses a checkpoint of another model, naming the keys that differ; returns what else there is to say."""
    _check_same(checkpoint.state.get("model", {}), config, checkpoint.folder)
    return notes_on_kind(checkpoint.state, config)


def notes_on_kind(state: Mapping[str, Any], config: ModelConfig) -> tuple[str, ...]:
    """Whether a model's own file is another than it was when `state` was saved."""
    theirs = state.get("model", {})
    origin = origin_of_kind(config.kind)
    if theirs.get("kind_sha256") in (None, origin.get("kind_sha256")):
        return ()
    return (
        f"{origin.get('kind_file')} has changed since these weights were trained (SHA-256 {theirs['kind_sha256']})",
    )


def _kind_then(theirs: Mapping[str, Any]) -> str:
    return str(theirs.get("kind", DEFAULT_KIND))


def _is_of_kind(theirs: Mapping[str, Any], kind: str, *, may_change: bool) -> bool:
    """Whether `kind` is the model's own: a file of the same name, or the same bytes under whatever name.

    may_change: other bytes under another name will do, of which the keys and tensors are compared.
    """
    then = _kind_then(theirs)
    if is_same_kind(then, kind) or then in KINDS or kind in KINDS:
        return is_same_kind(then, kind)
    same_name = then.rpartition(":")[2] == kind.rpartition(":")[2]
    return same_name and (may_change or theirs.get("kind_sha256") == origin_of_kind(kind)["kind_sha256"])


def _check_same(
    theirs: Mapping[str, Any],
    config: ModelConfig,
    where: Path,
    *,
    fit_positions: bool = False,
    may_change: bool = False,
) -> None:
    """A key that the source does not have yet was at its default."""
    spec, mine = load_spec(config.kind), config.model_dump(mode="json")
    defaults = {name: field.default for name, field in type(config).model_fields.items() if not field.is_required()}
    theirs = {**defaults, "kind": DEFAULT_KIND, **theirs}
    free = spec.free_keys | (spec.fitted_keys if fit_positions else set()) | {"kind"}
    differ = [] if _is_of_kind(theirs, config.kind, may_change=may_change) else ["kind"]
    differ += [key for key in mine if key not in free and theirs.get(key) != mine[key]]
    if differ:
        shown = ", ".join(f"model.{k} was {theirs.get(k)!r} and is now {mine[k]!r}" for k in differ[:4])
        shown += f" and {len(differ) - 4} more" if len(differ) > 4 else ""
        own = f" ({where / CONFIG})" if where.is_dir() else ""
        raise CheckpointError(f"{where} is of another model: {shown}; use the config it was trained with{own}")


def run_config(source: Path, kind: str | None = None) -> Config:
    """The config that the weights in `source` (as for `load_weights`) were trained with.

    Args:
        kind: where the model's own file lies now, if not where it lay then.

    Raises:
        CheckpointError: nothing there, damaged, a .safetensors file that mres did not write, or of a kind of model that
            cannot be imported.
        ConfigError: the config is not one of this version of mres.
    """
    found = open_weights(source)
    if found.config_yaml is None:
        raise CheckpointError(
            f"'{found.path}' does not say what model it is of (no config in its header); name the run's folder, "
            "or what tools/convert.py exported from it"
        )
    theirs = (found.state or {}).get("model", {})
    _check_importable(kind or theirs.get("kind", DEFAULT_KIND), theirs, found.path)
    if kind is not None and not _is_of_kind(theirs, kind, may_change=True):
        raise CheckpointError(f"{found.path} is of another model: {_kind_then(theirs)!r}, not '{kind}'")
    if found.path.is_dir():
        return load_config(found.path / CONFIG, kind=kind, stored=True)
    values = parse_yaml(found.config_yaml, f"the header of '{found.path}'")
    if kind is not None:
        values["model"]["kind"] = kind
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"the config in the header of '{found.path}' is of another version: {key}: {first['msg']}"
        ) from None


def _check_importable(kind: str, theirs: Mapping[str, Any], where: Path) -> None:
    """Raises: CheckpointError: it says where the model's own file lay, and which it was."""
    try:
        load_spec(kind)
    except UserError as error:
        then = f"; it was {theirs['kind_file']}, SHA-256 {theirs['kind_sha256']}" if "kind_sha256" in theirs else ""
        raise CheckpointError(
            f"'{where}' is of a model of its own: {error}{then}; put it back, or say where it lies now "
            "(--kind path/to/my_model.py:SPEC of tools/, kind='path/to/my_model.py:SPEC' of mres.load)"
        ) from None
