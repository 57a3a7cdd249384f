"""Where the pieces of a trained parameter lie in a ZeRO checkpoint's flat tensors.

Stages 1 and 2 keep a group's parameters one after another in a flat tensor that is cut into a piece a rank. Stage 3 cuts
every parameter into a piece a rank, and each rank keeps its pieces one after another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mres.checkpoint.folder import CheckpointError
from mres.checkpoint.forms.casting import HALF, cast_into
from mres.checkpoint.forms.deepspeed_files import Files
from mres.checkpoint.forms.deepspeed_layout import MOMENTS, Group
from mres.checkpoint.forms.form import ITEM_BYTES, Spec
from mres.checkpoint.forms.memory import Buffer
from mres.checkpoint.forms.torch_file import Chain
from mres.checkpoint.forms.torch_pickle import StoredTensor

MASTER = "fp32"


@dataclass(frozen=True, slots=True)
class Plan:
    """A tensor as `num` elements from `start` on of chains, one after another, float32 where they are of half precision.

    `order`: the dimensions as they lie in the file, where that is not their order.
    """

    shape: tuple[int, ...]
    dtype: str
    pieces: Sequence[tuple[Chain, int, int]]
    order: tuple[int, ...] | None = None

    @property
    def spec(self) -> Spec:
        return Spec(self.shape, "float32" if self.dtype in HALF else self.dtype)

    def read_into(self, target: memoryview, buffer: Buffer) -> None:
        """`buffer` holds what does not come as it lies."""
        if self.dtype not in HALF and self.order is None:
            self._read(target)
            return
        lying = buffer.take(math.prod(self.shape) * ITEM_BYTES[self.dtype])
        self._read(lying)
        if self.order is not None:
            lying = memoryview(bytearray(self._ordered(lying)))
        if self.dtype in HALF:
            cast_into(lying, self.dtype, target, "float32")
        else:
            target[:] = lying

    def _read(self, target: memoryview) -> None:
        width, done = ITEM_BYTES[self.dtype], 0
        for chain, start, num in self.pieces:
            chain.read_into(target[done * width : (done + num) * width], start)
            done += num

    def _ordered(self, lying: memoryview) -> bytes:
        assert self.order is not None
        elements = np.frombuffer(lying, f"V{ITEM_BYTES[self.dtype]}").reshape([self.shape[dim] for dim in self.order])
        return elements.transpose(sorted(range(len(self.order)), key=self.order.__getitem__)).tobytes()


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

    def _has(self, key: str) -> bool:
        """On every rank and in every group, or nowhere."""
        having = [key in state for states in self._states for state in states]
        if any(having) and not all(having):
            raise CheckpointError(f"{self._files.folder} has {key} of some groups or ranks only: it is damaged")
        return any(having)

    def chain(self, key: str, ranks: Sequence[int], flats: Sequence[int]) -> Chain:
        """Flat tensors of ranks, one after another."""
        return Chain(
            [
                self._files.optim[rank].stored(
                    self._masters[rank][flat] if key == MASTER else self._states[rank][flat][key]
                )
                for rank in ranks
                for flat in flats
            ]
        )

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
        value = bytearray(ITEM_BYTES[step.dtype])
        self._files.optim[rank].stored(step).read_into(memoryview(value), 0)
        return float(np.frombuffer(value, step.dtype)[0])


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


def groups_of(files: Files) -> tuple[Group, ...]:
    """The optimizer's groups by the names of their parameters."""
    shapes = [tuple(entry) for entry in files.model[0].structure["param_shapes"]]
    state = files.optimizer(0)
    base = state["optimizer_state_dict" if files.stage == 3 else "base_optimizer_state"]
    given = base["param_groups"] if isinstance(base, dict) else [{"params": [number]} for number in range(len(shapes))]
    groups, rest = [], iter(shapes)
    for group in given:
        names = tuple(name for _ in group["params"] for name in next(rest, ()))
        groups.append(Group(names, {key: value for key, value in group.items() if key != "params"}))
    return tuple(group for group in groups if group.names)


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
            yield name, Plan(shape, chain.dtype, [(chain, offset, math.prod(shape))])
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
        yield name, Plan(shape, chains[0].dtype, [(c, offset, n) for c, n in zip(chains, nums, strict=True) if n > 0])
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
