"""A checkpoint into another form, tensor by tensor: in little memory, taken up after a kill, compared with its source.

Needs no process group, no GPU and not even torch.
"""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from mres.checkpoint.folder import MANIFEST, SAFETENSORS_INDEX, CheckpointError, seal
from mres.checkpoint.store import step_folder
from mres.convert.target import check_apart, check_target
from mres.errors import UserError
from mres.io.files import commit_folder, free_bytes
from mres.io.progress import count_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mres.formats.opening import Kind, Opened
    from mres.formats.tensors import Spec, TensorSource
    from mres.formats.workspace import Workspace

Form = Literal["safetensors", "dcp", "zero1", "zero2", "zero3"]
SHARD_BYTES = 5 * 10**9
# What is promised of memory: so much, and twice the largest tensor (one of the source, one that is read back).
MEMORY_BYTES = 200 * 10**6
_MARGIN_BYTES, _BYTES_A_TENSOR = 1 << 20, 2048
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def parse_form(text: str) -> Form:
    """What `--to` names.

    Raises:
        UserError: something else, or a strategy, for which nothing needs to be converted.
    """
    for form in get_args(Form):
        if text == form:
            return form
    forms = ", ".join(get_args(Form))
    if text in ("single", "ddp", "fsdp", "zero"):
        raise UserError(
            f"--to {text}: checkpoints of all strategies have one form; go on with, or start from, any of them under "
            f"parallel.strategy={text} directly; --to takes {forms}"
        )
    raise UserError(f"--to '{text}': it takes {forms}")


def parse_options(form: Form, world_size: int | None, max_shard_size: str | None) -> dict[str, int]:
    """What `convert` takes of `--world-size` and `--max-shard-size`.

    Raises:
        UserError: a value that is none, or an option that the form does not have.
    """
    options = {}
    if world_size is not None:
        if not form.startswith("zero"):
            raise UserError(
                f"--world-size has no effect on --to {form}, which is read by any number of processes; drop it"
            )
        if world_size < 1:
            raise UserError(f"--world-size {world_size} must be at least 1")
        options["world_size"] = world_size
    if max_shard_size is not None:
        if form != "safetensors":
            raise UserError(f"--max-shard-size has no effect on --to {form}; drop it")
        options["max_shard_bytes"] = _parse_size(max_shard_size)
    return options


def _parse_size(text: str) -> int:
    number, unit = (text[:-2], _UNITS[text[-2:].upper()]) if text[-2:].upper() in _UNITS else (text, 1)
    try:
        size = int(float(number) * unit)
    except (ValueError, OverflowError):
        size = 0
    if size < 1:
        raise UserError(f"--max-shard-size '{text}' is no size; give bytes or a number with KB, MB or GB, such as 5GB")
    return size


def convert(
    source: Path,
    out: Path,
    form: Form,
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
        overwrite: replace `out` where it is the outcome of a conversion.
        weights: "ema" for the moving average in the place of the weights; no optimizer comes along with it.
        world_size: of "zero1" … "zero3": the ranks that are to read it.
        max_shard_bytes: of "safetensors": tensors of more bytes are spread over several files with an index.

    Returns:
        The checkpoint's folder: `out`, or `out`/step-….

    Raises:
        CheckpointError: source or target cannot be used, another conversion is writing the latter, no room, or what was
            written differs from what was read.
    """
    from mres.convert.comparing import check_same
    from mres.formats.opening import open_checkpoint
    from mres.formats.workspace import check_ours, held

    _look_at(source, out)
    check_target(out, overwrite=overwrite)
    root = out.absolute().with_name(out.name + ".incomplete")
    check_ours(root)
    opened = open_checkpoint(source)
    check_apart(opened.path.resolve(), out.resolve())
    chosen = _choose(opened, form, weights)
    options = {"world_size": world_size, "max_shard_bytes": max_shard_bytes}
    with held(root, out), _left_tidy(root, out):
        check_target(out, overwrite=overwrite)  # another conversion may have made it since
        work = _open_workspace(root, _purpose(opened.path, form, weights, options), chosen, form)
        _write(chosen, work, form, options)
        check_same(chosen, _reopen(work.folder, form), work.folder)
        if _is_sealed(chosen, form):
            assert chosen.state is not None
            assert chosen.config_yaml is not None
            (work.folder / MANIFEST).unlink(missing_ok=True)  # a killed one's would list itself
            seal(work.folder, int(chosen.state["step"]), chosen.state, chosen.config_yaml, work.facts)
        commit_folder(work.result, out.absolute())
    return out / work.folder.relative_to(work.result)


def _look_at(source: Path, out: Path) -> None:
    """Raises: CheckpointError: one of them cannot be looked at, or there is no source."""
    try:
        source.stat()
    except (FileNotFoundError, NotADirectoryError):
        link = f": a link to '{source.readlink()}', which is not there" if source.is_symlink() else ""
        raise CheckpointError(f"no such checkpoint or run: '{source}'{link}") from None
    except OSError as error:
        raise CheckpointError(f"'{source}' cannot be read: {error.strerror}") from None
    try:
        out.stat()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise CheckpointError(f"'{out}' cannot be written: {error.strerror}; name another folder") from None


@contextmanager
def _left_tidy(root: Path, out: Path) -> Iterator[None]:
    """The workspace goes at the end, whether its body fails or not; who interrupts it may want to go on."""
    from mres.formats.workspace import RESULT, remove_workspace

    try:
        yield
    except KeyboardInterrupt:
        if (root / RESULT).is_dir():
            _say(f"note: what was written is kept in '{root}'; the same command goes on from it")
        else:
            remove_workspace(root)
        raise
    except (OSError, MemoryError) as error:
        remove_workspace(root)
        raise CheckpointError(f"'{out}' was not written: {_reason(error)}; nothing of it was left behind") from None
    except Exception:
        remove_workspace(root)
        raise
    remove_workspace(root)


def _choose(opened: Opened, form: Form, kind: Kind) -> TensorSource:
    """All that the source has, or its weights alone where the form, or what is asked for, has no more."""
    from mres.formats.opening import weights_of
    from mres.formats.tensors import EMA, MODEL, OPTIM

    exported = opened.source.state is not None and opened.source.state.get("weights_only")
    if form == "safetensors" or kind == "ema" or exported:
        return weights_of(opened, kind)
    unknown = [name for name in opened.source.specs if not name.startswith((MODEL, OPTIM, EMA))]
    if unknown and form.startswith("zero"):
        raise CheckpointError(
            f"'{opened.path}' has {len(unknown)} tensors beside model.…, optim.… and ema.…, for which DeepSpeed's form has "
            f"no place (the first is {unknown[0]}); convert --to dcp or --to safetensors"
        )
    return opened.source


def _is_sealed(chosen: TensorSource, form: Form) -> bool:
    """Whether a state and a manifest stand beside the tensors: not of what others wrote, nor in DeepSpeed's folders."""
    return chosen.state is not None and chosen.config_yaml is not None and not form.startswith("zero")


def _purpose(source: Path, form: Form, kind: Kind, options: dict[str, int]) -> str:
    """What a workspace is for: another time, another source or other options begin anew."""
    if source.is_dir():
        files = sorted(path for path in source.rglob("*") if path.is_file())
    elif source.name == SAFETENSORS_INDEX:
        shards = json.loads(source.read_text(encoding="utf-8"))["weight_map"].values()
        files = [source, *(source.with_name(name) for name in sorted(set(shards)))]
    else:
        files = [source]
    found = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return json.dumps([str(source.absolute()), found, form, kind, options, metadata.version("mres")])


def _open_workspace(root: Path, purpose: str, chosen: TensorSource, form: Form) -> Workspace:
    """Says what will be written and what that takes.

    Raises:
        CheckpointError: there is no room for it.
    """
    from mres.formats.tensors import MODEL
    from mres.formats.workspace import Workspace

    sizes = [_written_bytes(spec, form) for spec in chosen.specs.values()]
    total, largest = sum(sizes), max(sizes, default=0)
    inside = ""
    if form == "dcp" and _is_sealed(chosen, form):
        assert chosen.state is not None
        inside = step_folder(Path(), int(chosen.state["step"])).name
    work = Workspace(root, purpose, inside)
    needed = total + _BYTES_A_TENSOR * len(sizes) + _MARGIN_BYTES - work.taken_up
    if form in ("zero1", "zero2"):  # what forward computes with lies beside the masters
        needed += sum(_written_bytes(spec, form) for name, spec in chosen.specs.items() if name.startswith(MODEL))
    free = free_bytes(root)
    _say(
        f"{len(sizes):,} tensors, {total / 1e6:,.1f} MB, the largest {largest / 1e6:,.1f} MB: takes about "
        f"{needed / 1e6:,.0f} MB of disk ({free / 1e6:,.0f} MB are free) and at most {(MEMORY_BYTES + 2 * largest) / 1e6:,.0f} "
        "MB of memory" + (f"; {work.taken_up / 1e6:,.0f} MB are there already" if work.taken_up else "")
    )
    if free < needed:
        raise CheckpointError(
            f"there are {free / 1e6:,.0f} MB free in '{root.parent}' and {needed / 1e6:,.0f} MB are needed; name a folder "
            "on another disk"
        )
    return work


def _written_bytes(spec: Spec, form: Form) -> int:
    """DeepSpeed's form has floats as float32."""
    return max(spec.num_bytes, 4 * spec.numel) if form.startswith("zero") and spec.is_floating else spec.num_bytes


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _write(chosen: TensorSource, work: Workspace, form: Form, options: dict[str, int]) -> None:
    from mres.formats.dcp import write_dcp
    from mres.formats.safetensors import write_safetensors

    for note in chosen.notes:
        _say(f"note: {note}")
    with count_bytes(sum(spec.num_bytes for spec in chosen.specs.values()), "writing") as progress:
        if form == "safetensors":
            progress(work.taken_up)
            write_safetensors(chosen, work, progress, options["max_shard_bytes"], _header(chosen))
        elif form == "dcp":
            progress(work.taken_up)
            write_dcp(chosen, work, progress)
        else:
            from mres.formats.deepspeed import write_deepspeed

            stage = int(form.removeprefix("zero"))
            for note in write_deepspeed(chosen, work, stage, options["world_size"], progress):
                _say(f"note: {note}")


def _header(chosen: TensorSource) -> dict[str, str]:
    """ "pt" is what other readers look for; config and step are for the file that lost its folder."""
    header = {"format": "pt", "mres": metadata.version("mres")}
    if chosen.state is not None and chosen.config_yaml is not None:
        header |= {"step": str(chosen.state["step"]), "weights": chosen.state.get("weights", "model")}
        header["config"] = chosen.config_yaml
    return header


def _reopen(folder: Path, form: Form) -> TensorSource:
    from mres.formats.dcp import DcpSource
    from mres.formats.safetensors import SafetensorsSource

    if form == "dcp":
        return DcpSource(folder)
    if form == "safetensors":
        return SafetensorsSource(folder)
    from mres.formats.deepspeed import open_deepspeed

    return open_deepspeed(folder)


def _reason(error: OSError | MemoryError) -> str:
    if isinstance(error, MemoryError):
        return "there is not enough memory"
    return f"{error.strerror or error}" + (f": '{error.filename}'" if error.filename else "")
