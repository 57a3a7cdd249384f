"""Where the pieces of a trained parameter lie in a ZeRO checkpoint's flat tensors.

Stages 1 and 2 keep a group's parameters one after another in a flat tensor that is cut into a piece a rank. Stage 3 cuts
every parameter into a piece a rank, and each rank keeps its pieces one after another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mres.formats.casting import CASTABLE, HALF, cast_into
from mres.formats.deepspeed_files import Files
from mres.formats.deepspeed_layout import MOMENTS, ParamGroup
from mres.formats.folder import CheckpointError
from mres.formats.memory import Buffer, elements
from mres.formats.stored import Chain, Stored
from mres.formats.tensors import ITEM_BYTES, Spec
from mres.formats.torch_pickle import StoredTensor

MASTER = "fp32"
_PIECE = 1 << 20  # elements of half precision that are read and widened at a time


class Plan(Protocol):
    """How a tensor is read; float32 where the files have half precision."""

    @property
    def spec(self) -> Spec: ...

    def read_into(self, target: memoryview, buffer: Buffer) -> None:
        """`buffer` holds parts of what does not come as it is wanted."""
        ...


@dataclass(frozen=True, slots=True)
class Flat:
    """A tensor as `num` elements from `start` on of chains, one after another."""

    shape: tuple[int, ...]
    dtype: str
    pieces: Sequence[tuple[Chain, int, int]]

    @property
    def spec(self) -> Spec:
        return Spec(self.shape, widened(self.dtype))

    def read_into(self, target: memoryview, buffer: Buffer) -> None:
        width, done = ITEM_BYTES[self.spec.dtype], 0
        for chain, start, num in self.pieces:
            of_target = target[done * width : (done + num) * width]
            if self.dtype in HALF:
                _read_widened(chain, start, of_target, buffer)
            else:
                chain.read_into(of_target, start)
            done += num


def _read_widened(chain: Chain, start: int, target: memoryview, buffer: Buffer) -> None:
    """A piece at a time."""
    num = target.nbytes // ITEM_BYTES["float32"]
    for at in range(0, num, _PIECE):
        part = min(_PIECE, num - at)
        lying = buffer.take(part * ITEM_BYTES[chain.dtype])
        chain.read_into(lying, start + at)
        cast_into(lying, chain.dtype, target[4 * at : 4 * (at + part)], "float32")


@dataclass(frozen=True, slots=True)
class Whole:
    """A tensor as it lies in one file; of images' kernels, channels may lie last. `widen`: what is half comes as float32."""

    stored: Stored
    widen: bool = True

    @property
    def spec(self) -> Spec:
        dtype = self.stored.tensor.dtype
        return Spec(self.stored.tensor.shape, widened(dtype) if self.widen else dtype)

    def read_into(self, target: memoryview, buffer: Buffer) -> None:
        dtype = self.stored.tensor.dtype
        wider = self.spec.dtype != dtype
        lying = target[target.nbytes // 2 :] if wider else target  # widened from the front on, in place
        self.stored.read_box(elements(lying, dtype, self.spec.shape), buffer)
        if wider:
            cast_into(lying, dtype, target, "float32")


def widened(dtype: str) -> str:
    return "float32" if dtype in HALF else dtype


class Flats:
    """The flat tensors of all ranks; `flat` numbers a rank's: a group (stages 1, 2) or a part of one (stage 3).

    Raises:
        CheckpointError: the ranks' files do not fit together.
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        key = "fp32_flat_groups" if files.stage == 3 else "single_partition_of_fp32_groups"
        self._masters = [list(files.optimizer(rank)[key]) for rank in range(files.world_size)]
        self._states = [_optimizer_states(files.optimizer(rank), files.stage) for rank in range(files.world_size)]
        self.num = len(self._masters[0])
        for rank, (masters, states) in enumerate(zip(self._masters, self._states, strict=True)):
            if len(masters) != self.num or len(states) != self.num:
                raise CheckpointError(
                    f"{files.optim[rank].path} has {len(masters)} flat tensors and optimizer state of {len(states)}, "
                    f"{files.optim[0].path.name} has {self.num}: they are not of one checkpoint"
                )
        self.keys = (MASTER, *(key for key in MOMENTS if self._has(key)))

    @property
    def left_behind(self) -> list[str]:
        """What an optimizer other than AdamW keeps of its parameters, by its keys."""
        kept = {key for states in self._states for state in states for key, value in state.items() if value is not None}
        return sorted(str(key) for key in kept - {*MOMENTS, "step"})

    def _has(self, key: str) -> bool:
        """On every rank and in every group, or nowhere."""
        having = [key in state for states in self._states for state in states]
        if any(having) and not all(having):
            raise CheckpointError(f"{self._files.folder} has {key} of some groups or ranks only: it is damaged")
        return any(having)

    def chain(self, key: str, ranks: Sequence[int], flats: Sequence[int]) -> Chain:
        """Flat tensors of ranks, one after another."""

        def stored(rank: int, flat: int) -> Stored:
            tensor = self._masters[rank][flat] if key == MASTER else self._states[rank][flat][key]
            return Stored(self._files.optim[rank], tensor)

        return Chain([stored(rank, flat) for rank in ranks for flat in flats])

    def step(self, flat: int) -> float:
        """How often AdamW moved it.

        Raises:
            CheckpointError: the ranks' counts differ.
        """
        steps = [self._read_step(rank, flat) for rank in range(self._files.world_size)]
        for rank, step in enumerate(steps):
            if step != steps[0]:
                raise CheckpointError(
                    f"{self._files.optim[rank].path} is of step {step:.0f}, {self._files.optim[0].path.name} of step "
                    f"{steps[0]:.0f}: they were saved at different times"
                )
        return steps[0]

    def _read_step(self, rank: int, flat: int) -> float:
        step = self._states[rank][flat].get("step", 0)
        if not isinstance(step, StoredTensor):
            return float(step)
        return _read_scalar(Stored(self._files.optim[rank], step))


def _optimizer_states(state: Mapping[str, Any], stage: int) -> list[dict[str, Any]]:
    """What the optimizer keeps of each flat tensor."""
    base = state["optimizer_state_dict" if stage == 3 else "base_optimizer_state"]
    if isinstance(base, list):  # "elastic", of stages 1 and 2
        return [{"step": state.get("base_optimizer_state_step", 0), **entry} for entry in base]
    return [
        {"step": group.get("step", 0), **base["state"].get(number, {})}
        for group in base["param_groups"]
        for number in group["params"]
    ]


def groups_of(files: Files) -> tuple[ParamGroup, ...]:
    """The optimizer's groups by the names of their parameters."""
    shapes = [tuple(entry) for entry in files.model[0].structure["param_shapes"]]
    state = files.optimizer(0)
    base = state["optimizer_state_dict" if files.stage == 3 else "base_optimizer_state"]
    given = base["param_groups"] if isinstance(base, dict) else [{"params": [number]} for number in range(len(shapes))]
    groups, rest = [], iter(shapes)
    for group in given:
        names = tuple(name for _ in group["params"] for name in next(rest, ()))
        options = {key: _plain(files, value) for key, value in group.items() if key != "params"}
        if options.get("amsgrad"):  # its maxima do not come along, and AdamW would miss them
            options["amsgrad"] = False
        groups.append(ParamGroup(names, {key: value for key, value in options.items() if value is not _DROPPED}))
    return tuple(group for group in groups if group.names)


_DROPPED = object()
_MAX_DEPTH = 4  # of lists in an option


def _plain(files: Files, value: Any, depth: int = 0) -> Any:
    """An option of an optimizer's group that anybody can read: numbers, texts, and lists of them."""
    if isinstance(value, StoredTensor):
        return _read_scalar(Stored(files.optim[0], value)) if value.numel == 1 else _DROPPED
    if isinstance(value, list | tuple) and depth < _MAX_DEPTH:
        items = [_plain(files, item, depth + 1) for item in value]
        return _DROPPED if any(item is _DROPPED for item in items) else type(value)(items)
    return value if isinstance(value, str | int | float | None) else _DROPPED


def _read_scalar(stored: Stored) -> float:
    value = bytearray(ITEM_BYTES[stored.tensor.dtype])
    stored.read_into(memoryview(value), 0)
    if stored.tensor.dtype in CASTABLE:
        wide = bytearray(ITEM_BYTES["float64"])
        cast_into(memoryview(value), stored.tensor.dtype, memoryview(wide), "float64")
        return float(np.frombuffer(wide, np.float64)[0])
    return float(np.frombuffer(value, stored.tensor.dtype)[0])


def trained_plans(files: Files, flats: Flats) -> dict[str, dict[str, Plan]]:
    """Plans of every trained parameter, by its name and by MASTER, "exp_avg" and "exp_avg_sq".

    Raises:
        CheckpointError: shapes and flat tensors differ.
    """
    plans: dict[str, dict[str, Plan]] = {}
    for key in flats.keys:
        found = _cut_parameters(files, flats, key) if files.stage == 3 else _cut_groups(files, flats, key)
        for name, plan in found:
            plans.setdefault(name, {})[key] = plan
    return plans


def _cut_groups(files: Files, flats: Flats, key: str) -> Iterator[tuple[str, Plan]]:
    """Stages 1 and 2; options of DeepSpeed may align every parameter."""
    shapes = files.model[0].structure["param_shapes"]
    paddings = files.optimizer(0).get("param_alignment_paddings") or [[0] * len(entry) for entry in shapes]
    if len(shapes) != flats.num:
        raise CheckpointError(f"{files.model[0].path} has {len(shapes)} groups, the optimizer's files {flats.num}")
    for flat, (named, padding) in enumerate(zip(shapes, paddings, strict=True)):
        chain = flats.chain(key, range(files.world_size), [flat])
        _check_even(files, chain)
        offset = 0
        for (name, shape), pad in zip(named.items(), padding, strict=True):
            _check_end(files, chain, name, offset + math.prod(shape))
            yield name, Flat(shape, chain.dtype, [(chain, offset, math.prod(shape))])
            offset += math.prod(shape) + pad


def _cut_parameters(files: Files, flats: Flats, key: str) -> Iterator[tuple[str, Plan]]:
    """Stage 3; the last pieces of a parameter are padded."""
    chains = [flats.chain(key, [rank], range(flats.num)) for rank in range(files.world_size)]
    offset = 0
    for name, shape in ((n, s) for named in files.model[0].structure["param_shapes"] for n, s in named.items()):
        size = math.ceil(math.prod(shape) / files.world_size)
        nums = [min(size, math.prod(shape) - size * rank) for rank in range(files.world_size)]
        for chain in chains:
            _check_end(files, chain, name, offset + size)
        yield name, Flat(shape, chains[0].dtype, [(c, offset, n) for c, n in zip(chains, nums, strict=True) if n > 0])
        offset += size


def _check_even(files: Files, chain: Chain) -> None:
    """All pieces are of one size, up to where the padding of the last ones was left out."""
    full = chain.sizes[0]
    whole = [size == full for size in chain.sizes]
    filled = sum(whole)
    if not all(whole[:filled]) or any(chain.sizes[filled + 1 :]) or max(chain.sizes) > full:
        raise CheckpointError(
            f"{files.folder} has pieces of {list(chain.sizes)} elements: they are not of one checkpoint"
        )


def _check_end(files: Files, chain: Chain, name: str, end: int) -> None:
    if end > chain.numel:
        raise CheckpointError(
            f"{files.folder}: '{name}' ends at element {end} of a flat tensor that has {chain.numel}: shapes and "
            "optimizer state are not of one checkpoint"
        )
