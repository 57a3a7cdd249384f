"""DeepSpeed ZeRO: optimizer state (stage 1), gradients too (2), weights too (3) partitioned over all ranks."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

from mres.parallel.native import build_optimizer
from mres.parallel.strategy import AdamW, ParameterGroup, Strategy
from mres.parallel.zero_state import Partition, assign_owners, chunked

_BUCKET = 50_000_000
# Host memory that loading takes beside a rank's own share; every rank reads each chunk whole and keeps its piece.
_CHUNK_BYTES = 1 << 28


class ZeroStrategy(Strategy):
    """A torch AdamW over float32 masters, partitioned; compute in `compute_dtype`, gradients reduced in float32."""

    # Stage 3 keeps smaller parameters whole on every rank: gathering them costs more time than they cost memory.
    persist_below: ClassVar[int] = 100_000

    _engine: Any
    _partition: Partition
    _optimizer: torch.optim.AdamW

    def wrap(
        self, model: nn.Module, blocks: Sequence[nn.Module], groups: Sequence[ParameterGroup], adamw: AdamW
    ) -> None:
        deepspeed = _import_deepspeed(self.world.device.type, self.world.local_rank)
        model.to(self.world.device)
        half = self.config.compute_dtype == "bfloat16"
        # DeepSpeed makes its float32 masters from weights that it has rounded to bfloat16: keep the exact ones.
        exact = {n: p.detach().cpu() for n, p in model.named_parameters()} if half else {}
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        self._optimizer = build_optimizer(model, groups, adamw)
        # It prints memory figures (stage 1 in bfloat16); what its logger says comes through.
        with redirect_stdout(io.StringIO()):
            self._engine, *_ = deepspeed.initialize(
                # Else it would take LOCAL_RANK for the device, which is wrong where a rank sees its own GPU only.
                args=SimpleNamespace(device_rank=self.world.device.index or 0),
                model=model,
                optimizer=self._optimizer,
                config=self._deepspeed_config(adamw, sum(shape.numel() for shape in shapes.values())),
            )
        self.module = self._engine
        self._partition = Partition(self._engine.optimizer, model, groups, shapes, self.world)
        if half:
            model.register_forward_pre_hook(_to_bfloat16)
            for name, value in exact.items():
                self._partition.write(name, "param", value)

    def _deepspeed_config(self, adamw: AdamW, num_parameters: int) -> dict[str, Any]:
        return {
            # Of no effect on training: batches come from the stream, their mean from the loss, boundaries from micro_batch.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": adamw.max_grad_norm,
            "bf16": {"enabled": self.config.compute_dtype == "bfloat16", "check_grad_overflow": True},
            "data_types": {"grad_accum_dtype": "fp32"},
            "communication_data_type": "fp32",
            "zero_optimization": {
                "stage": self.config.zero_stage,
                "reduce_bucket_size": min(_BUCKET, num_parameters),
                "stage3_param_persistence_threshold": self.persist_below,
                # It replaces torch.nn.functional.linear for the whole process.
                "memory_efficient_linear": False,
            },
            # It waits for the device at every step.
            "timers": {"throughput": {"enabled": False}},
        }

    def micro_batch(self, *, last: bool) -> AbstractContextManager[Any]:
        self._engine.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self, lr: float) -> Tensor:
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        # It reads the norm on the host and leaves everything as it is where that is not finite; the norm is then inf.
        self._engine.step()
        return torch.as_tensor(self._engine.get_global_grad_norm(), dtype=torch.float32, device=self.world.device)

    def save_state(self, folder: Path) -> None:
        """Gathers tensor by tensor, each on the one rank that writes it: no rank ever holds the whole model."""
        state: dict[str, Tensor] = {}
        for name, owner in assign_owners(self._partition.shapes, self.world.size).items():
            for key, target in _KEYS.items():
                whole = self._partition.gather(name, key, owner)
                if whole is not None:
                    state[target.format(name)] = whole
            if owner == self.world.rank:
                state[f"optim.{name}.step"] = self._partition.step_of(name)
        dcp.save(state, checkpoint_id=folder, process_group=self._cpu_group)

    def load_state(self, folder: Path, *, optimizer: bool) -> None:
        keys = _KEYS if optimizer else {"param": _KEYS["param"]}
        steps = {f"optim.{name}.step": torch.zeros(()) for name in self._partition.shapes} if optimizer else {}
        if optimizer:
            self._load(folder, steps)
            self._partition.write_steps({name: steps[f"optim.{name}.step"] for name in self._partition.shapes})
        for names in chunked(self._partition.shapes, _CHUNK_BYTES // len(keys)):
            read = {t.format(n): torch.empty(self._partition.shapes[n]) for n in names for t in keys.values()}
            self._load(folder, read)
            for name in names:
                for key, target in keys.items():
                    self._partition.write(name, key, read[target.format(name)])
        self._partition.publish()

    def _load(self, folder: Path, state: dict[str, Tensor]) -> None:
        dcp.load(state, checkpoint_id=folder, process_group=self._cpu_group)


# What is partitioned, and where it lies in a checkpoint.
_KEYS = {"param": "model.{}", "exp_avg": "optim.{}.exp_avg", "exp_avg_sq": "optim.{}.exp_avg_sq"}


def _import_deepspeed(device_type: str, local_rank: int) -> Any:
    """DeepSpeed on our device, without compiling anything."""
    # Asked what device to use, it need not guess and warn that it found no GPU.
    os.environ.setdefault("DS_ACCELERATOR", device_type)
    os.environ.setdefault("LOCAL_RANK", str(local_rank))
    import deepspeed
    import deepspeed.ops

    # DeepSpeed calls them by the names that torch is about to retire; a user can do nothing about that.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    if device_type == "cpu":
        # A shared-memory all-reduce for inference, which its gloo backend would compile with g++ before it starts.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _to_bfloat16(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(v.bfloat16() if torch.is_tensor(v) and v.is_floating_point() else v for v in inputs)
