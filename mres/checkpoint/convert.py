"""A checkpoint into another form: weights in one safetensors file, or a checkpoint that a run can start from.

Needs no process group and no GPU: the checkpoints of all strategies have one form. No torch before the arguments hold.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mres.checkpoint.folder import DCP_METADATA, MANIFEST, SAFETENSORS, CheckpointError, seal, verify
from mres.checkpoint.store import published, reason, step_folder
from mres.errors import UserError
from mres.files import free_bytes, fsync, publish_folder
from mres.progress import track

if TYPE_CHECKING:
    from torch import Tensor

    from mres.checkpoint.weights import Kind, Source

Form = Literal["safetensors", "dcp"]
_STRATEGIES = {
    "single": "parallel.strategy=single",
    "ddp": "parallel.strategy=ddp",
    "fsdp": "parallel.strategy=fsdp",
    "zero": "parallel.strategy=zero",
    **{f"zero{stage}": f"parallel.strategy=zero parallel.zero_stage={stage}" for stage in (1, 2, 3)},
}
_MARGIN_BYTES = 1 << 20


def parse_form(text: str) -> Form:
    """What `--to` names.

    Raises:
        UserError: something else, or a strategy, for which nothing needs to be converted.
    """
    if text == "safetensors" or text == "dcp":
        return "safetensors" if text == "safetensors" else "dcp"
    if text in _STRATEGIES:
        raise UserError(
            f"--to {text} is not needed: checkpoints of all strategies have the same form; go on with, or start from, any "
            f"of them under {_STRATEGIES[text]} directly (--to takes safetensors or dcp)"
        )
    raise UserError(f"--to '{text}': safetensors and dcp are what there is")


def convert(source: Path, out: Path, form: Form, *, overwrite: bool = False, weights: Kind = "model") -> Path:
    """Writes the weights in `source` into the folder `out`, which appears at the end, checked, or not at all.

    Args:
        source: a run's, checkpoint's or exported folder, or a .safetensors file that mres wrote.
        out: for "safetensors" the folder of model.safetensors; for "dcp" the parent of a step-… folder, as a run's
            checkpoints/ is. The optimizer comes along from one dcp to another.
        overwrite: replace `out` where it is the outcome of a conversion.
        weights: "ema" for the moving average in the place of the weights; no optimizer comes along with it.

    Returns:
        The checkpoint's folder: `out` for "safetensors", `out`/step-… for "dcp".

    Raises:
        CheckpointError: source or target cannot be used, no room, or what was written differs from what was read.
    """
    if not source.exists():
        raise CheckpointError(f"no such checkpoint or run: '{source}'")
    _check_target(out, overwrite=overwrite)
    from torch.distributed.checkpoint.api import CheckpointException

    from mres.checkpoint.weights import open_source

    found = open_source(source, weights)
    _check_apart(found.path.resolve(), out.resolve())
    part = out.absolute().with_name(out.name + ".incomplete")
    try:
        shutil.rmtree(part, ignore_errors=True)  # what a killed conversion left
        part.mkdir(parents=True)
        folder = _fill(found, part, form, weights)
        publish_folder(part, out.absolute())
    except (OSError, CheckpointException) as error:
        raise CheckpointError(f"'{out}' was not written: {reason(error)}; nothing of it was left behind") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out / folder.relative_to(part)


def _check_target(out: Path, *, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise CheckpointError(f"'{out}' exists and is not empty; name another folder, or --overwrite to replace it")
    if not _is_outcome(out):
        raise CheckpointError(
            f"'{out}' is not what a conversion makes, so --overwrite does not remove it; name another"
        )


def _is_outcome(out: Path) -> bool:
    """A checkpoint, or a folder of just one."""
    return out.is_dir() and ((out / MANIFEST).is_file() or list(out.iterdir()) == published(out)[:1])


def _check_apart(source: Path, out: Path) -> None:
    if source.is_relative_to(out) or out.is_relative_to(source):
        raise CheckpointError(
            f"'{out}' and what is to be converted, '{source}', lie inside each other; name another folder"
        )


def _fill(found: Source, part: Path, form: Form, kind: Kind) -> Path:
    """Writes and checks the checkpoint's folder in (or as) `part`; returns it."""
    from mres.checkpoint.weights import open_source, weights_state

    if found.state is None or found.config_yaml is None:
        raise CheckpointError(
            f"'{found.path}' does not say what model and step it is of (no config in its header); convert from the "
            f"run's folder, or use it as it is: checkpoint.init_from={found.path}"
        )
    step = int(found.state["step"])
    folder = part if form == "safetensors" else step_folder(part, step)
    folder.mkdir(exist_ok=True)
    kind = found.state.get("weights", kind)  # of what was exported before, whichever it is
    if form == "dcp" and kind == "model" and (found.path / DCP_METADATA).is_file():
        _copy_files(found.path, folder)
        return folder
    _check_room(part, found.weights.num_bytes)
    tensors = dict(track(found.weights, len(found.weights), f"reading {found.path}"))
    if form == "safetensors":
        _write_safetensors(folder / SAFETENSORS, tensors, step, kind, found.config_yaml)
    else:
        _write_dcp(folder, tensors)
    seal(folder, step, weights_state(step, found.state.get("model", {}), kind), found.config_yaml)
    _check_same_bits(open_source(folder), tensors)
    return folder


def _copy_files(source: Path, folder: Path) -> None:
    """Byte for byte, with the manifest that says what they must be."""
    paths = sorted(source.iterdir())
    _check_room(folder.parent, sum(path.stat().st_size for path in paths))
    for path in track(paths, len(paths), f"copying {source}"):
        fsync(Path(shutil.copyfile(path, folder / path.name)))
    fsync(folder)
    verify(folder)


def _check_room(part: Path, num_bytes: int) -> None:
    free = free_bytes(part)
    if free < num_bytes + _MARGIN_BYTES:
        raise CheckpointError(
            f"there are {free / 1e6:,.0f} MB free in '{part.parent}' and {(num_bytes + _MARGIN_BYTES) / 1e6:,.0f} MB are "
            "needed; name a folder on another disk"
        )


def _write_safetensors(path: Path, tensors: dict[str, Tensor], step: int, kind: Kind, config_yaml: str) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # "pt" is what other readers of safetensors look for; config and step are for the file that lost its folder.
    header = {
        "format": "pt",
        "mres": metadata.version("mres"),
        "step": str(step),
        "weights": kind,
        "config": config_yaml,
    }
    try:
        save_file(tensors, path, header)
    except SafetensorError as error:
        raise OSError(None, str(error), str(path)) from None


def _write_dcp(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    import torch.distributed.checkpoint as dcp

    from mres.checkpoint.weights import PREFIX, alone

    with alone():
        dcp.save({PREFIX + name: tensor for name, tensor in tensors.items()}, checkpoint_id=folder, no_dist=True)


def _check_same_bits(written: Source, tensors: Mapping[str, Tensor]) -> None:
    """Reads everything back: the same names, types, shapes and bits."""
    import torch

    def bits(tensor: Tensor) -> Tensor:
        return tensor.reshape(-1).view(torch.uint8)

    seen = 0
    for name, tensor in track(written.weights, len(written.weights), "checking"):
        given = tensors.get(name)
        fits = given is not None and given.dtype == tensor.dtype and given.shape == tensor.shape
        if given is None or not fits or not torch.equal(bits(given), bits(tensor)):
            raise CheckpointError(f"'{written.path}': {name} does not read back as it was written; is the disk sound?")
        seen += 1
    if seen != len(tensors):
        raise CheckpointError(f"'{written.path}': {seen} of {len(tensors)} tensors read back; is the disk sound?")
