"""The formats that a checkpoint is converted into: all that a conversion asks of one is in its object here."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

from mres.errors import UserError
from mres.formats.dcp import DcpSource, write_dcp
from mres.formats.deepspeed_read import open_deepspeed
from mres.formats.deepspeed_write import write_deepspeed
from mres.formats.folder import CONFIG, DCP_METADATA, SAFETENSORS, SAFETENSORS_INDEX, STATE
from mres.formats.safetensors import SafetensorsSource, write_safetensors
from mres.formats.tensors import EMA, MODEL, OPTIM, Progress, Spec, TensorSource
from mres.formats.workspace import Workspace

SHARD_BYTES = 5 * 10**9
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True, slots=True)
class Options:
    """What some formats take.

    Attributes:
        world_size: the ranks that are to read it.
        max_shard_bytes: tensors of more bytes are spread over several files with an index.
    """

    world_size: int = 1
    max_shard_bytes: int = SHARD_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """What a checkpoint can be written as.

    Attributes:
        name: what `--to` takes.
        open: reads what was written into a folder.
        write: fills the workspace with a source's tensors; what it had to assume, in sentences.
        files: names that it gives to files and folders; `marks`: one of these is always there.
        prefixes: of the names of the tensors that it has a place for; all, where there are none.
        weights_only: of a checkpoint, it holds the weights alone.
        sealed: a state and a manifest stand beside the tensors, where the source says its model and step.
        in_step_folder: what is sealed is a step-… folder in the one that is made, as a run's checkpoints/ has them.
        options: the fields of `Options` that it takes.
        written_bytes: what a tensor takes on the disk.
        num_copies: how often a weight is written.
    """

    name: str
    open: Callable[[Path], TensorSource]
    write: Callable[[TensorSource, Workspace, Options, Progress], Sequence[str]]
    files: str
    marks: tuple[str, ...]
    prefixes: tuple[str, ...] = ()
    weights_only: bool = False
    sealed: bool = True
    in_step_folder: bool = False
    options: tuple[str, ...] = ()
    written_bytes: Callable[[Spec], int] = lambda spec: spec.num_bytes
    num_copies: int = 1


def _write_safetensors(source: TensorSource, work: Workspace, options: Options, progress: Progress) -> Sequence[str]:
    """ "pt" is what other readers look for; config and step are for the file that lost its folder."""
    header = {"format": "pt", "mres": metadata.version("mres")}
    if source.state is not None and source.config_yaml is not None:
        header |= {"step": str(source.state["step"]), "weights": source.state.get("weights", "model")}
        header["config"] = source.config_yaml
    progress(work.taken_up)
    write_safetensors(source, work, progress, options.max_shard_bytes, header)
    return ()


def _write_dcp(source: TensorSource, work: Workspace, _: Options, progress: Progress) -> Sequence[str]:
    progress(work.taken_up)
    write_dcp(source, work, progress)
    return ()


def _write_zero(
    stage: int, source: TensorSource, work: Workspace, options: Options, progress: Progress
) -> Sequence[str]:
    return write_deepspeed(source, work, stage, options.world_size, progress)


def _zero(stage: int) -> Format:
    """DeepSpeed's checkpoints of a stage of ZeRO, which has floats as float32."""
    return Format(
        name=f"zero{stage}",
        open=open_deepspeed,
        write=partial(_write_zero, stage),
        files=rf"latest|global_step\d+|{re.escape(STATE)}|{re.escape(CONFIG)}",
        marks=("latest",),
        prefixes=(MODEL, OPTIM, EMA),
        sealed=False,
        options=("world_size",),
        written_bytes=lambda spec: max(spec.num_bytes, 4 * spec.numel) if spec.is_floating else spec.num_bytes,
        num_copies=1 if stage == 3 else 2,  # what forward computes with lies beside the masters
    )


FORMATS = {
    format_.name: format_
    for format_ in (
        Format(
            name="safetensors",
            open=SafetensorsSource,
            write=_write_safetensors,
            files=rf"model(-\d+-of-\d+)?\.safetensors|{re.escape(SAFETENSORS_INDEX)}",
            marks=(SAFETENSORS, SAFETENSORS_INDEX),
            weights_only=True,
            options=("max_shard_bytes",),
        ),
        Format(
            name="dcp",
            open=DcpSource,
            write=_write_dcp,
            files=rf"{re.escape(DCP_METADATA)}|__\d+_\d+\.distcp",
            marks=(DCP_METADATA,),
            in_step_folder=True,
        ),
        *map(_zero, (1, 2, 3)),
    )
}


def parse_format(text: str) -> Format:
    """What `--to` names.

    Raises:
        UserError: something else, or a strategy, for which nothing needs to be converted.
    """
    if text in FORMATS:
        return FORMATS[text]
    names = ", ".join(FORMATS)
    if text in ("single", "ddp", "fsdp", "zero"):
        raise UserError(
            f"--to {text}: checkpoints of all strategies have one format; go on with, or start from, any of them under "
            f"parallel.strategy={text} directly; --to takes {names}"
        )
    raise UserError(f"--to '{text}': it takes {names}")


def parse_options(to: Format, world_size: int | None, max_shard_size: str | None) -> Options:
    """`--world-size` and `--max-shard-size`.

    Raises:
        UserError: a value that is none, or an option that the format does not have.
    """
    given = {"--world-size": ("world_size", world_size), "--max-shard-size": ("max_shard_bytes", max_shard_size)}
    for flag, (field, value) in given.items():
        if value is not None and field not in to.options:
            having = ", ".join(name for name, other in FORMATS.items() if field in other.options)
            raise UserError(f"{flag} has no effect on --to {to.name}, only on {having}; drop it")
    if world_size is not None and world_size < 1:
        raise UserError(f"--world-size {world_size} must be at least 1")
    return Options(
        1 if world_size is None else world_size, SHARD_BYTES if max_shard_size is None else _parse_size(max_shard_size)
    )


def _parse_size(text: str) -> int:
    number, unit = (text[:-2], _UNITS[text[-2:].upper()]) if text[-2:].upper() in _UNITS else (text, 1)
    try:
        size = int(float(number) * unit)
    except (ValueError, OverflowError):
        size = 0
    if size < 1:
        raise UserError(f"--max-shard-size '{text}' is no size; give bytes or a number with KB, MB or GB, such as 5GB")
    return size
