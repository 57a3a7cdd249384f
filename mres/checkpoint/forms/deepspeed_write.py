"""Writing DeepSpeed's own ZeRO checkpoints (stages 1, 2 and 3, any number of ranks), tensor by tensor without DeepSpeed.

What is written loads in stock DeepSpeed 0.19 by `engine.load_checkpoint`, in the stage and on as many ranks as it was
written for, and its `zero_to_fp32.py` makes the weights of it.
"""

from __future__ import annotations

import json
import resource
import shutil
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from mres.checkpoint.folder import CONFIG, STATE, CheckpointError
from mres.checkpoint.forms.deepspeed_cut import Cut, ShardCut, cuts_of
from mres.checkpoint.forms.deepspeed_files import EXTRA
from mres.checkpoint.forms.deepspeed_layout import MOMENTS, Layout, layout_of
from mres.checkpoint.forms.deepspeed_read import DeepSpeedSource
from mres.checkpoint.forms.deepspeed_structure import ModelFile, OptimFile, State
from mres.checkpoint.forms.form import EMA, MODEL, OPTIM, Progress, TensorSource
from mres.checkpoint.forms.torch_file_writer import TorchFileWriter, Written
from mres.files import fsync, write_durably

# What is open beside them: the source, libraries.
_OTHER_FILES = 128


def write_deepspeed(source: TensorSource, folder: Path, stage: int, world_size: int, progress: Progress) -> list[str]:
    """Writes `latest` and the folder that it names into `folder`, with state.json and config.yaml where there are any.

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
    _allow_open_files(2 * world_size)
    shutil.rmtree(folder / tag, ignore_errors=True)  # what a writer that was killed left
    (folder / tag).mkdir()
    with ExitStack() as stack:
        writer = _Writer(source, layout, stage, world_size, progress)
        writer.open(folder / tag, stack)
        writer.write_trained()
        writer.write_others()
    _write_extra(source, folder / tag / EXTRA, progress)
    _write_beside(source, folder, tag)
    return layout.notes


def _allow_open_files(count: int) -> None:
    """Every rank's files are open at once, more than many shells allow by default.

    Raises:
        CheckpointError: the system allows fewer.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + _OTHER_FILES
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise CheckpointError(
            f"files for {count // 2} ranks are {count} open files, and the system allows {hard} (ulimit -Hn); raise it, or "
            "convert for fewer ranks (--world-size)"
        )
    if soft != resource.RLIM_INFINITY and needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


class _Writer:
    """All files of a tag at once: every piece of a tensor goes to the end of the file that it belongs to."""

    def __init__(self, source: TensorSource, layout: Layout, stage: int, world_size: int, progress: Progress) -> None:
        self._source, self._layout, self._stage, self._world_size = source, layout, stage, world_size
        self._progress = progress
        names = (*(name for group in layout.groups for name in group.names), *layout.frozen, *layout.buffers)
        self._shapes = {name: source.specs[MODEL + name].shape for name in names}
        self._cuts = cuts_of(layout.groups, self._shapes, stage, world_size)
        self._moments = MOMENTS if any(name.startswith(OPTIM) for name in source.specs) else ()
        self._module: dict[str, Written] = {}

    def open(self, folder: Path, stack: ExitStack) -> None:
        """Begins every file; they are closed with `stack`."""

        def begin(name: str) -> TorchFileWriter:
            return stack.enter_context(TorchFileWriter(folder / name))

        half = "bf16_" if self._layout.compute == torch.bfloat16 else ""
        ranks = range(self._world_size)
        self._optim = [begin(f"{half}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt") for rank in ranks]
        by_rank = [f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in ranks]
        self._model = [begin(name) for name in (by_rank if self._stage == 3 else ["mp_rank_00_model_states.pt"])]

    def write_trained(self) -> None:
        """The optimizer's files; of stages 1 and 2, what forward computes with goes into the model's file meanwhile."""
        structures = [OptimFile(self._layout, self._cuts, self._stage, rank) for rank in range(self._world_size)]
        for cut in (cut for cuts in self._cuts for cut in cuts):
            states = self._write_flat(cut)
            for structure, state in zip(structures, states, strict=True):
                structure.add(state)
        for file, structure in zip(self._optim, structures, strict=True):
            file.finish(structure.build())

    def _write_flat(self, cut: Cut) -> list[State]:
        """Masters and moments of a flat tensor, by rank."""
        masters = self._write_pieces(cut, MODEL + "{}", cut.filled)
        moments = {key: self._write_pieces(cut, f"{OPTIM}{{}}.{key}", cut.sizes) for key in self._moments}
        states = [State(master, {key: of[rank] for key, of in moments.items()}) for rank, master in enumerate(masters)]
        if self._moments:
            step = self._read_step(cut.names)
            for file, state in zip(self._optim, states, strict=True):
                state.optimizer["step"] = file.put(step)
        return states

    def _write_pieces(self, cut: Cut, pattern: str, sizes: list[int]) -> list[Written]:
        written = [file.begin((size,), torch.float32) for file, size in zip(self._optim, sizes, strict=True)]
        for name in cut.names:
            self._append(cut, name, pattern)
        for file in self._optim:
            file.fill()
        return written

    def _append(self, cut: Cut, name: str, pattern: str) -> None:
        """One tensor, which is let go of before the next is read."""
        whole = self._source.read(pattern.format(name)).to(torch.float32)
        if whole.shape != self._shapes[name]:
            raise CheckpointError(f"'{pattern.format(name)}' has another shape than the weight: {tuple(whole.shape)}")
        flat = whole.reshape(-1)
        for piece in cut.pieces(name):
            self._optim[piece.rank].append(flat[piece.start : piece.stop])
            self._optim[piece.rank].append(torch.zeros(piece.padding))
        if pattern.startswith(MODEL) and self._stage < 3:
            self._module[name] = self._model[0].put(whole.to(self._layout.compute))
        self._progress(whole.nbytes)

    def _read_step(self, names: tuple[str, ...]) -> Tensor:
        """The one count that a flat tensor has."""
        steps = {name: self._source.read(f"{OPTIM}{name}.step").to(torch.float32) for name in names}
        first = steps[names[0]]
        for name, step in steps.items():
            if step != first:
                raise CheckpointError(
                    f"the optimizer counts {float(first):.0f} steps for '{names[0]}' and {float(step):.0f} for '{name}'; "
                    "DeepSpeed keeps one count for both, so this checkpoint cannot take its form"
                )
            self._progress(step.nbytes)
        return first.reshape(())

    def write_others(self) -> None:
        """The model's files: what is frozen, buffers, and the names of everything."""
        structures = [ModelFile(self._layout, self._cuts, self._stage, self._shapes) for _ in self._model]
        for name in self._layout.frozen:
            whole = self._source.read(MODEL + name)
            self._progress(whole.nbytes)
            for structure, written in zip(structures, self._write_frozen(name, whole.to(torch.float32)), strict=True):
                structure.frozen[name] = written
        for name in self._layout.buffers:
            whole = self._source.read(MODEL + name)
            self._progress(whole.nbytes)
            for file, structure in zip(self._model, structures, strict=True):
                structure.module[name] = file.put(whole)
        names = [name.removeprefix(MODEL) for name in self._source.specs if name.startswith(MODEL)]
        aliases = {a.removeprefix(MODEL): n.removeprefix(MODEL) for a, n in self._source.aliases.items()}
        for file, structure in zip(self._model, structures, strict=True):
            if self._stage == 3:  # parameters are not here: something without elements stands for them
                nothing = file.put(torch.empty(0, dtype=self._layout.compute))
                structure.module |= {name: nothing for name in names if name not in structure.module}
            else:
                structure.module |= self._module | structure.frozen
            file.finish(structure.build(names, aliases))

    def _write_frozen(self, name: str, whole: Tensor) -> list[Written]:
        if self._stage < 3:
            return [self._model[0].put(whole)]
        cut = ShardCut([name], self._shapes, self._world_size)
        flat = whole.reshape(-1)
        written = []
        for piece in cut.pieces(name):
            file = self._model[piece.rank]
            written.append(file.begin((cut.sizes[piece.rank],), torch.float32))
            file.append(flat[piece.start : piece.stop])
            file.fill()
        return written


def _write_extra(source: TensorSource, path: Path, progress: Progress) -> None:
    """Moving averages, which DeepSpeed has no place for."""
    names = [name for name in source.specs if name.startswith(EMA)]
    if not names:
        return
    with TorchFileWriter(path) as file:
        tensors = {}
        for name in names:
            whole = source.read(name)
            tensors[name] = file.put(whole)
            progress(whole.nbytes)
        file.finish({"tensors": tensors})


def _write_beside(source: TensorSource, folder: Path, tag: str) -> None:
    """What names the folder of files comes last."""
    if source.state is not None:
        write_durably(folder / STATE, json.dumps(source.state, indent=1).encode())
    if source.config_yaml is not None:
        write_durably(folder / CONFIG, source.config_yaml.encode())
    fsync(folder / tag)
    write_durably(folder / "latest", tag.encode())
    fsync(folder)
