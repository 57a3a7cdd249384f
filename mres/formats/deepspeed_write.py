"""Writing DeepSpeed's own ZeRO checkpoints (stages 1, 2 and 3, any number of ranks), tensor by tensor without DeepSpeed.

What is written loads in stock DeepSpeed 0.19 by `engine.load_checkpoint`, in the stage and on as many ranks as it was
written for, and its `zero_to_fp32.py` makes the weights of it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import numpy as np

from mres.formats.casting import cast_into
from mres.formats.deepspeed_cut import Cut, ShardCut, cuts_of
from mres.formats.deepspeed_files import EXTRA
from mres.formats.deepspeed_layout import MOMENTS, Layout, layout_of
from mres.formats.deepspeed_read import DeepSpeedSource
from mres.formats.deepspeed_structure import State, model_structure, optim_structure
from mres.formats.files_together import FilesTogether, allow_open_files
from mres.formats.folder import CONFIG, STATE, CheckpointError
from mres.formats.memory import Buffer, Reader
from mres.formats.tensors import EMA, ITEM_BYTES, MODEL, OPTIM, Progress, Spec, TensorSource
from mres.formats.torch_archive_writer import TorchArchiveWriter, Written
from mres.formats.workspace import Workspace
from mres.io.files import fsync, write_durably


def write_deepspeed(
    source: TensorSource, work: Workspace, stage: int, world_size: int, progress: Progress
) -> list[str]:
    """Writes `latest` and the folder that it names, with state.json and config.yaml where there are any.

    Args:
        source: read one tensor after another, each once.
        stage: 1, 2 or 3.
        world_size: the number of ranks that are to load it.

    Returns:
        What had to be assumed, in sentences.

    Raises:
        CheckpointError: the source cannot be written so.
    """
    assert stage in (1, 2, 3)
    assert world_size > 0
    layout = source.layout if isinstance(source, DeepSpeedSource) else layout_of(source)
    tag = f"global_step{layout.counts['global_steps']}"
    allow_open_files(2 * world_size)
    with ExitStack() as stack:
        files = FilesTogether(work, tag, stack)
        writer = _Writer(source, layout, stage, world_size, files, progress)
        writer.write_trained()
        writer.write_others()
        files.note()
    _write_beside(source, work.folder, tag)
    return layout.notes


class _Writer:
    """Fills the files of all ranks; what a writer that was killed has noted is neither read nor written again."""

    def __init__(
        self,
        source: TensorSource,
        layout: Layout,
        stage: int,
        world_size: int,
        files: FilesTogether,
        progress: Progress,
    ) -> None:
        self._source, self._layout, self._stage, self._world_size = source, layout, stage, world_size
        self._files, self._progress = files, progress
        self._reader = Reader(source)
        self._buffers: defaultdict[str, Buffer] = defaultdict(Buffer)  # by what was cast to
        names = (*(name for group in layout.groups for name in group.names), *layout.frozen, *layout.buffers)
        self._shapes = {name: source.specs[MODEL + name].shape for name in names}
        self._cuts = cuts_of(layout.groups, self._shapes, stage, world_size)
        self._moments = MOMENTS if any(name.startswith(OPTIM) for name in source.specs) else ()
        self._module: dict[str, Written] = {}
        half = "bf16_" if layout.compute == "bfloat16" else ""
        ranks = range(world_size)
        self._optim = [files.begin(f"{half}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt") for rank in ranks]
        by_rank = [f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in ranks]
        self._model = [files.begin(name) for name in (by_rank if stage == 3 else ["mp_rank_00_model_states.pt"])]

    def write_trained(self) -> None:
        """The optimizer's files; of stages 1 and 2, what forward computes with goes into the model's file meanwhile."""
        flats = [self._write_flat(cut) for cuts in self._cuts for cut in cuts]
        for rank, (file, states) in enumerate(zip(self._optim, zip(*flats, strict=True), strict=True)):
            file.finish(optim_structure(self._layout, self._cuts, self._stage, rank, states))

    def _write_flat(self, cut: Cut) -> list[State]:
        """Masters and moments of a flat tensor, by rank."""
        masters = self._write_fragments(cut, MODEL + "{}", cut.filled)
        moments = {key: self._write_fragments(cut, f"{OPTIM}{{}}.{key}", cut.sizes) for key in self._moments}
        states = [State(master, {key: of[rank] for key, of in moments.items()}) for rank, master in enumerate(masters)]
        if self._moments:
            step = np.float32(self._read_step(cut.names)).tobytes()
            for file, state in zip(self._optim, states, strict=True):
                state.optimizer["step"] = _put(file, Spec((), "float32"), lambda: memoryview(step))
        return states

    def _write_fragments(self, cut: Cut, pattern: str, sizes: list[int]) -> list[Written]:
        written = [file.begin(Spec((size,), "float32")) for file, size in zip(self._optim, sizes, strict=True)]
        for name in cut.names:
            self._append(cut, name, pattern)
            self._files.note_if_due()
        for file in self._optim:
            file.fill()
        return written

    def _append(self, cut: Cut, name: str, pattern: str) -> None:
        """One tensor, which is let go of before the next is read."""
        full = pattern.format(name)
        spec = Spec(self._shapes[name], "float32")
        if self._source.specs[full].shape != spec.shape:
            raise CheckpointError(f"'{full}' has another shape than the weight: {self._source.specs[full].shape}")
        module = None
        if pattern.startswith(MODEL) and self._stage < 3:
            module = self._model[0]
            self._module[name] = module.begin(Spec(spec.shape, self._layout.compute))
        pieces = [
            p
            for p in cut.fragments(name)
            if self._optim[p.rank].num_there < 4 * (p.offset + p.stop - p.start + p.padding)
        ]
        missing = module is not None and module.num_there < spec.numel * ITEM_BYTES[self._layout.compute]
        self._progress(self._source.specs[full].num_bytes)
        if not pieces and not missing:
            return
        whole = self._read(full, "float32")
        for piece in pieces:
            self._optim[piece.rank].append(whole[4 * piece.start : 4 * piece.stop])
            self._optim[piece.rank].fill(4 * piece.padding)
        if module is not None and missing:
            module.append(self._cast(whole, "float32", self._layout.compute))

    def _read(self, name: str, dtype: str) -> memoryview:
        """A tensor as elements of a type."""
        return self._cast(self._reader.read(name), self._source.specs[name].dtype, dtype)

    def _cast(self, elements: memoryview, dtype: str, wanted: str) -> memoryview:
        if dtype == wanted:
            return elements
        out = self._buffers[wanted].take(elements.nbytes // ITEM_BYTES[dtype] * ITEM_BYTES[wanted])
        cast_into(elements, dtype, out, wanted)
        return out

    def _read_step(self, names: tuple[str, ...]) -> float:
        """The one count that a flat tensor has."""
        steps = {name: float(np.frombuffer(self._read(f"{OPTIM}{name}.step", "float32"), "f4")[0]) for name in names}
        first = steps[names[0]]
        for name, step in steps.items():
            if step != first:
                raise CheckpointError(
                    f"the optimizer counts {first:.0f} steps for '{names[0]}' and {step:.0f} for '{name}'; "
                    "DeepSpeed keeps one count for both, so this checkpoint cannot take its format"
                )
            self._progress(4)
        return first

    def write_others(self) -> None:
        """The model's files: what is frozen, buffers, and the names of everything."""
        modules: list[dict[str, Written]] = [{} for _ in self._model]
        frozen: list[dict[str, Written]] = [{} for _ in self._model]
        for name in self._layout.frozen:
            for of_file, written in zip(frozen, self._write_frozen(name), strict=True):
                of_file[name] = written
            self._files.note_if_due()
        for name in self._layout.buffers:
            spec = self._source.specs[MODEL + name]
            whole = self._whole(MODEL + name, spec.dtype)
            for file, module in zip(self._model, modules, strict=True):
                module[name] = _put(file, spec, whole)
        names = [name.removeprefix(MODEL) for name in self._source.specs if name.startswith(MODEL)]
        tied = {alias: name for alias, name in self._source.aliases.items() if alias.startswith(MODEL)}
        aliases = {alias.removeprefix(MODEL): name.removeprefix(MODEL) for alias, name in tied.items()}
        for file, module, held in zip(self._model, modules, frozen, strict=True):
            if self._stage == 3:  # parameters are not here: something without elements stands for them
                nothing = file.begin(Spec((0,), self._layout.compute))
                found = {name: module.get(name, nothing) for name in names}
            else:
                everything = module | self._module | held
                found = {name: everything[name] for name in names}
            file.finish(model_structure(self._layout, self._cuts, self._stage, self._shapes, found, held, aliases))
        self._write_averages()

    def _write_frozen(self, name: str) -> list[Written]:
        spec = Spec(self._shapes[name], "float32")
        whole = self._whole(MODEL + name, "float32")
        if self._stage < 3:
            return [_put(self._model[0], spec, whole)]
        cut = ShardCut([name], self._shapes, self._world_size)
        written = []
        for piece in cut.fragments(name):
            file = self._model[piece.rank]
            written.append(file.begin(Spec((cut.sizes[piece.rank],), "float32")))
            if not file.is_full:
                file.append(whole()[4 * piece.start : 4 * piece.stop])
                file.fill()
        return written

    def _write_averages(self) -> None:
        """Moving averages, which DeepSpeed has no place for."""
        names = [name for name in self._source.specs if name.startswith(EMA)]
        if not names:
            return
        file, tensors = self._files.begin(EXTRA), {}
        for name in names:
            spec = self._source.specs[name]
            tensors[name] = _put(file, spec, self._whole(name, spec.dtype))
            self._files.note_if_due()
        file.finish({"tensors": tensors})

    def _whole(self, name: str, dtype: str) -> Callable[[], memoryview]:
        """Reads a tensor when it is asked for first."""

        self._progress(self._source.specs[name].num_bytes)
        return cache(lambda: self._read(name, dtype))


def _put(file: TorchArchiveWriter, spec: Spec, whole: Callable[[], memoryview]) -> Written:
    """A whole tensor, unless it is there."""
    written = file.begin(spec)
    if not file.is_full:
        file.append(whole())
    return written


def _write_beside(source: TensorSource, folder: Path, tag: str) -> None:
    """What names the folder of files comes last."""
    if source.state is not None:
        write_durably(folder / STATE, json.dumps(source.state, indent=1).encode())
    if source.config_yaml is not None:
        write_durably(folder / CONFIG, source.config_yaml.encode())
    fsync(folder / tag)
    write_durably(folder / "latest", tag.encode())
    fsync(folder)
