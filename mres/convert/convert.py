"""A checkpoint into another format, tensor by tensor: in little memory, taken up after a kill, compared with its source.

Needs no process group, no GPU and not even torch.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from mres.checkpoint.opening import Kind, Opened, open_checkpoint, weights_of
from mres.checkpoint.store import step_folder
from mres.convert.comparing import check_same
from mres.convert.formats import FORMATS, SHARD_BYTES, Format, Options
from mres.convert.target import check_apart, check_target
from mres.errors import about_os, near_path
from mres.formats.folder import MANIFEST, CheckpointError, seal
from mres.formats.safetensors import files_of
from mres.formats.tensors import MODEL, TensorSource
from mres.formats.workspace import Workspace
from mres.io.files import free_bytes
from mres.io.progress import count_bytes
from mres.io.staged import Staged, staged

# What is promised of memory: so much, and twice the largest tensor (one of the source, one that is read back).
MEMORY_BYTES = 200 * 10**6
_MARGIN_BYTES, _BYTES_A_TENSOR = 1 << 20, 2048


def convert(
    source: Path,
    out: Path,
    to: str,
    *,
    overwrite: bool = False,
    weights: Kind = "model",
    world_size: int = 1,
    max_shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Writes what is in `source` into the folder `out`, which appears at the end, checked, or not at all.

    A conversion that was killed or interrupted goes on when it is called with the same arguments. Whatever fails leaves
    nothing.

    Args:
        source: what `open_checkpoint` takes: runs, checkpoints, exports, DeepSpeed's folders, bare DCP folders.
        out: for "dcp" the parent of a step-… folder, as a run's checkpoints/ is; else the checkpoint's folder. What does
            not say its model and step has no step-… folder and no manifest either.
        to: the name of one of `FORMATS`.
        overwrite: replace `out` where it is the outcome of a conversion.
        weights: "ema" for the moving average in the place of the weights; no optimizer comes along with it.
        world_size, max_shard_bytes: of the formats that take them (`Options`).

    Returns:
        The checkpoint's folder: `out`, or `out`/step-….

    Raises:
        UserError: source or target cannot be used, another process is writing the latter, no room, or what was written
            differs from what was read.
    """
    format_, options = FORMATS[to], Options(world_size, max_shard_bytes)
    _look_at(source, out)
    check_target(out, overwrite=overwrite)
    opened = open_checkpoint(source)
    check_apart(opened.path.resolve(), out.resolve())
    chosen = _choose(opened, format_, weights)
    purpose = _purpose(opened.path, to, weights, options)
    try:
        with staged(out.absolute(), purpose, keep=_is_interrupted) as stage:
            check_target(out, overwrite=overwrite)  # another conversion may have made it since
            work = _open_workspace(stage, chosen, format_)
            _write(chosen, work, format_, options)
            stage.commit()
    except (OSError, MemoryError) as error:
        reason = about_os(error) if isinstance(error, OSError) else "there is not enough memory"
        raise CheckpointError(f"'{out}' was not written: {reason}; nothing of it was left behind") from None
    return out / work.folder.relative_to(stage.result)


def _is_interrupted(result: Path, error: BaseException) -> bool:
    """Who interrupts it may want to go on."""
    return isinstance(error, KeyboardInterrupt) and any(path.is_file() for path in result.rglob("*"))


def _write(chosen: TensorSource, work: Workspace, format_: Format, options: Options) -> None:
    """All files of the checkpoint, compared with the source."""
    for note in chosen.notes:
        _say(f"note: {note}")
    with count_bytes(sum(spec.num_bytes for spec in chosen.specs.values()), "writing") as progress:
        for note in format_.write(chosen, work, options, progress):
            _say(f"note: {note}")
    check_same(chosen, format_.open(work.folder), work.folder)
    if _is_sealed(chosen, format_):
        assert chosen.state is not None
        assert chosen.config_yaml is not None
        (work.folder / MANIFEST).unlink(missing_ok=True)  # a killed one's would list itself
        seal(work.folder, int(chosen.state["step"]), chosen.state, chosen.config_yaml, work.facts)


def _look_at(source: Path, out: Path) -> None:
    """Raises: CheckpointError: one of them cannot be looked at, or there is no source."""
    try:
        source.stat()
    except (FileNotFoundError, NotADirectoryError):
        link = f": a link to '{source.readlink()}', which is not there" if source.is_symlink() else ""
        raise CheckpointError(f"no such checkpoint or run: '{source}'{link or near_path(source)}") from None
    except OSError as error:
        raise CheckpointError(f"'{source}' cannot be read: {error.strerror}") from None
    try:
        out.stat()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise CheckpointError(f"'{out}' cannot be written: {error.strerror}; name another folder") from None


def _choose(opened: Opened, format_: Format, kind: Kind) -> TensorSource:
    """All that the source has, or its weights alone where the format, or what is asked for, has no more."""
    exported = opened.source.state is not None and opened.source.state.get("weights_only")
    if format_.weights_only or kind == "ema" or exported:
        return weights_of(opened, kind)
    unknown = [name for name in opened.source.specs if not name.startswith(format_.prefixes or "")]
    if unknown:
        raise CheckpointError(
            f"'{opened.path}' has {len(unknown)} tensors beside {', '.join(f'{p}…' for p in format_.prefixes)}, for which "
            f"{format_.name} has no place (the first is {unknown[0]}); convert --to dcp or --to safetensors"
        )
    return opened.source


def _is_sealed(chosen: TensorSource, format_: Format) -> bool:
    return format_.sealed and chosen.state is not None and chosen.config_yaml is not None


def _purpose(source: Path, to: str, kind: Kind, options: Options) -> str:
    """What a workspace is for: another time, another source or other options begin anew."""
    inside = source.rglob("*") if source.is_dir() else {source, *files_of(source)}
    files = sorted(path for path in inside if path.is_file())
    found = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return json.dumps([str(source.absolute()), found, to, kind, asdict(options), metadata.version("mres")])


def _open_workspace(stage: Staged, chosen: TensorSource, format_: Format) -> Workspace:
    """Says what will be written and what that takes.

    Raises:
        CheckpointError: there is no room for it.
    """
    sizes = {name: format_.written_bytes(spec) for name, spec in chosen.specs.items()}
    largest = max(sizes.values(), default=0)
    inside = ""
    if format_.in_step_folder and _is_sealed(chosen, format_):
        assert chosen.state is not None
        inside = step_folder(Path(), int(chosen.state["step"])).name
    work = Workspace(stage, inside)
    copies = sum(size for name, size in sizes.items() if name.startswith(MODEL)) * (format_.num_copies - 1)
    needed = sum(sizes.values()) + copies + _BYTES_A_TENSOR * len(sizes) + _MARGIN_BYTES - work.taken_up
    free = free_bytes(stage.root)
    _say(
        f"{len(sizes):,} tensors, {sum(sizes.values()) / 1e6:,.1f} MB, the largest {largest / 1e6:,.1f} MB: takes about "
        f"{needed / 1e6:,.0f} MB of disk ({free / 1e6:,.0f} MB are free) and at most {(MEMORY_BYTES + 2 * largest) / 1e6:,.0f} "
        "MB of memory" + (f"; {work.taken_up / 1e6:,.0f} MB are there already" if work.taken_up else "")
    )
    if free < needed:
        raise CheckpointError(
            f"there are {free / 1e6:,.0f} MB free in '{stage.root.parent}' and {needed / 1e6:,.0f} MB are needed; name a folder "
            "on another disk"
        )
    return work


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
