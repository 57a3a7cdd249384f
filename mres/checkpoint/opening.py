"""A checkpoint that somebody names, in whichever format it is, as a source of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mres.checkpoint.store import locate
from mres.credentials import redacted
from mres.formats.dcp import DcpSource
from mres.formats.deepspeed_read import is_deepspeed, open_deepspeed
from mres.formats.folder import (
    CONFIG,
    DCP_METADATA,
    MANIFEST,
    SAFETENSORS,
    SAFETENSORS_INDEX,
    STATE,
    Checkpoint,
    CheckpointError,
    saved_config,
)
from mres.formats.safetensors import SafetensorsSource
from mres.formats.tensors import EMA, MODEL, Spec, TensorSource
from mres.io.yaml_files import YamlError, parse_yaml

if TYPE_CHECKING:
    from mres.formats.weights import Weights

# Which of a checkpoint's weights: those that were trained, or their moving average.
Kind = Literal["model", "ema"]


@dataclass(frozen=True, slots=True)
class Opened:
    """`path`: the folder or file that was meant by what was named."""

    path: Path
    source: TensorSource


@dataclass(frozen=True, slots=True)
class OpenedWeights:
    """Weights and what is known about them, which of files that mres did not write is nothing.

    `path` is a checkpoint's folder or a .safetensors file; `state` has the step and the model section.
    """

    path: Path
    weights: Weights
    state: dict[str, Any] | None
    config_yaml: str | None


def open_weights(path: Path, kind: Kind = "model") -> OpenedWeights:
    """`weights_of` what `open_checkpoint` finds at `path`, raising as they do, as tensors of torch."""
    from mres.formats.weights import Weights

    opened = open_checkpoint(path)
    found = weights_of(opened, kind)
    # What was verified keeps its own state, of which the weights' is a part.
    return OpenedWeights(opened.path, Weights(found), opened.source.state, found.config_yaml)


def open_checkpoint(path: Path) -> Opened:
    """What is at `path`, checked where there is something to check it with.

    Args:
        path: a run's folder, its checkpoints/ or one checkpoint; an exported folder; a .safetensors file or the index of
            several; a checkpoint folder of DeepSpeed; a DCP folder of others with tensors named model.….

    Raises:
        CheckpointError: nothing there, damaged, or of no format that can be read.
    """
    try:
        return _open(path)
    except OSError as error:
        raise CheckpointError(f"'{error.filename or path}' cannot be read: {error.strerror or error}") from None


def _open(path: Path) -> Opened:
    if path.suffix == ".safetensors" or path.name == SAFETENSORS_INDEX:
        if path.name in (SAFETENSORS, SAFETENSORS_INDEX) and (path.parent / MANIFEST).is_file():
            return _open_sealed(locate(path.parent, optimizer=False))
        return Opened(path, _with_header(path, SafetensorsSource(path)))
    if path.is_file():
        raise CheckpointError(
            f"'{path}' is a file: of files, *.safetensors and {SAFETENSORS_INDEX} are read; of all else, name the folder: "
            f"a run, one of its checkpoints/step-*, an exported folder, DeepSpeed's folder of *_states.pt (or that of its "
            f"file latest), or a DCP folder of {DCP_METADATA} and *.distcp"
        )
    foreign = _foreign(path)
    return Opened(path, foreign) if foreign is not None else _open_sealed(locate(path, optimizer=False))


def _open_sealed(found: Checkpoint) -> Opened:
    config_yaml = saved_config(found.folder / CONFIG)
    if (found.folder / DCP_METADATA).is_file():
        return Opened(found.folder, DcpSource(found.folder, found.state, config_yaml))
    source = SafetensorsSource(found.folder)
    source.state, source.config_yaml = found.state, config_yaml
    return Opened(found.folder, source)


def _foreign(path: Path) -> TensorSource | None:
    """What no manifest of mres covers, where it is another library's; none where it is a checkpoint of mres, or nothing."""
    if is_deepspeed(path):
        return open_deepspeed(path)
    if not path.is_dir() or (path / MANIFEST).is_file() or (path / STATE).is_file():
        return None
    if (path / DCP_METADATA).is_file() and path.suffix != ".incomplete":
        source = DcpSource(path, check_sums=True)
        if not any(name.startswith(MODEL) for name in source.specs):
            first = next(iter(source.specs), "nothing")
            raise CheckpointError(
                f"'{path}' has no tensor named {MODEL}… (the first is {first}); of DCP folders that mres did not write, "
                'those are taken that hold {"model": model.state_dict(), …}'
            )
        return source
    if (path / SAFETENSORS).is_file() or (path / SAFETENSORS_INDEX).is_file():
        return _with_header(path, SafetensorsSource(path))
    return None


def _with_header(path: Path, source: SafetensorsSource) -> SafetensorsSource:
    """What mres wrote into a file's header is known of it, even where the folder is lost."""
    header = source.header
    if "config" not in header or "step" not in header:
        return source
    try:
        model = dict(parse_yaml(header["config"], f"the header of '{path}'")["model"])
        source.state = weights_state(int(header["step"]), model, header.get("weights", "model"))
    except (YamlError, KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"'{path}' has a header that cannot be read: no step, or no model in its config"
        ) from None
    source.config_yaml = redacted(header["config"])
    return source


def weights_state(step: int, model: dict[str, Any], kind: str) -> dict[str, Any]:
    """What state.json says beside weights without an optimizer; `kind`: which of a run's they are."""
    return {"step": step, "weights_only": True, "weights": kind, "model": model}


class Selection(TensorSource):
    """Some tensors of a source, under other names; what is not selected is not missed, and no note says so.

    Args:
        names: by the name here, the name there.
    """

    def __init__(self, source: TensorSource, names: Mapping[str, str], state: dict[str, Any] | None) -> None:
        self._source, self._names = source, names
        self.specs: dict[str, Spec] = {name: source.specs[there] for name, there in names.items()}
        self.aliases = {alias: name for alias, name in source.aliases.items() if name in names}
        self.state, self.config_yaml = state, source.config_yaml

    def read_into(self, name: str, target: memoryview) -> None:
        self._source.read_into(self._names[name], target)


def weights_of(opened: Opened, kind: Kind) -> Selection:
    """The weights alone, under model.…; of "ema", what has no average (it was frozen) comes as it is.

    Of what was exported there is one kind; "model" takes it, whichever it is.

    Raises:
        CheckpointError: there is no average.
    """
    source = opened.source
    state = source.state
    exported = state.get("weights") if state is not None else None
    plain = [name for name in source.specs if name.startswith(MODEL)]
    averages = {name: EMA + name.removeprefix(MODEL) for name in plain}
    stored = {name: averages[name] if averages[name] in source.specs and kind == "ema" else name for name in plain}
    if kind == "ema" and exported != "ema" and all(name == there for name, there in stored.items()):
        raise CheckpointError(
            f"{opened.path} holds no moving average of the weights: it was trained without optim.ema_decay, or exported "
            "without --weights ema; take the weights themselves (evaluate.weights=model)"
        )
    if state is not None and not state.get("weights_only"):
        kept = {"buffers": state["buffers"]} if state.get("buffers") else {}
        state = weights_state(int(state["step"]), state.get("model", {}), kind) | kept
    return Selection(source, stored, state)
