"""DeepSpeed ZeRO: optimizer state (stage 1), gradients too (2), weights too (3) partitioned over all ranks."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mres.dcp.local_shards import LocalShard, assign_owners
from mres.dcp.staging import read_shards, refuse_strangers
from mres.errors import UserError
from mres.model.buffers import persistent_buffers
from mres.parallel.batch_norm import synchronise_batch_norms
from mres.parallel.blocks import prepare_blocks
from mres.parallel.ema import holds_average
from mres.parallel.materialise import Materialiser, align_replicas, materialise
from mres.parallel.native import build_optimizer
from mres.parallel.precision import cast_inputs
from mres.parallel.strategy import AdamW, ParameterGroup, StepFilter, Strategy
from mres.parallel.zero.ds_config import merged, read_ds_config, refusals_named
from mres.parallel.zero.frozen import Frozen
from mres.parallel.zero.saved import gathered_weights_unsaved
from mres.parallel.zero.state import Partition, chunked, drop_second_copy
from mres.parallel.zero.step_filter import StepFilterHook

_BUCKET = 50_000_000
# Host memory that loading frozen parameters takes: every rank reads each chunk of them whole.
_CHUNK_BYTES = 1 << 28


class ZeroStrategy(Strategy):
    """A torch AdamW over float32 masters, partitioned; compute in `compute_dtype`, gradients reduced in float32."""

    # Stage 3 keeps smaller parameters whole on every rank: gathering them costs more time than they cost memory.
    persist_below: ClassVar[int] = 100_000

    _engine: Any
    _partition: Partition
    _optimizer: torch.optim.AdamW
    _filter_hook: StepFilterHook

    def wrap(
        self, model: nn.Module, blocks: Sequence[nn.Module], groups: Sequence[ParameterGroup], adamw: AdamW
    ) -> None:
        deepspeed = _import_deepspeed(self.world.device.type, self.world.local_rank)
        half = self.config.compute_dtype == "bfloat16"
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        frozen = Frozen(model, assign_owners(shapes, self.world.size), self.world.rank)
        # DeepSpeed makes its float32 masters from weights that it has rounded to bfloat16: keep the exact ones.
        exact = {n: p.detach().cpu() for n, p in model.named_parameters() if half and not p.is_meta}
        settings = self._deepspeed_config(adamw, sum(shape.numel() for shape in shapes.values()))
        synchronise_batch_norms(model, self.world.size)
        prepare_blocks(blocks, self.config)
        if self.config.zero_stage == 3:
            with refusals_named(self.config.ds_config):
                _partition_parameters(deepspeed, model, settings, self.world.device)
        materialise(model, self.world.device)
        frozen.find(model)
        buffers = [(module, name, b) for module in model.modules() for name, b in module._buffers.items()]
        self._optimizer = build_optimizer(model, groups, adamw)
        # It prints memory figures (stage 1 in bfloat16); what its logger says comes through.
        with refusals_named(self.config.ds_config), redirect_stdout(io.StringIO()):
            self._engine, *_ = deepspeed.initialize(
                # Else it would take LOCAL_RANK for the device, which is wrong where a rank sees its own GPU only.
                args=SimpleNamespace(device_rank=self.world.device.index or 0),
                model=model,
                optimizer=self._optimizer,
                config=settings,
            )
        self.module, self.model = self._engine, model
        for module, name, buffer in buffers:  # which it has rounded to bfloat16
            module._buffers[name] = buffer
        if self.config.zero_stage == 3 and self.config.offload == "none":
            drop_second_copy(self._engine.optimizer)
        self._partition = Partition(self._engine.optimizer, model, groups, shapes, frozen, self.world)
        self._filter_hook = StepFilterHook(self._optimizer, self._norm)
        if half:
            model.register_forward_pre_hook(cast_inputs(self.precision.compute))
            for name, value in exact.items():
                self._partition.write(name, value)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        buffers = persistent_buffers(self.model)
        for name, whole in weights:
            if name in buffers:
                buffers[name].copy_(whole)
            else:
                self._partition.write(name, whole)
        if self.world.size > 1:
            align_replicas(buffers.values())
        self._partition.sync_params()

    def weight_shares(self) -> Iterator[tuple[str, Tensor]]:
        return self._partition.weight_shares()

    def forward_shares(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.model.named_parameters():
            yield name, getattr(parameter, "ds_tensor", parameter).detach()

    def describe(self) -> str:
        return f"{super().describe()}, stage {self.config.zero_stage}"

    def _deepspeed_config(self, adamw: AdamW, num_parameters: int) -> dict[str, Any]:
        own = self._own_config(adamw, num_parameters)
        if self.config.ds_config is None:
            return own
        path = Path(self.config.ds_config)
        given = read_ds_config(path)
        for rank, theirs in enumerate(self.all_gather_object(given)):
            if theirs != given:
                raise UserError(f"rank {rank} reads another parallel.ds_config='{path}' than rank {self.world.rank}")
        return merged(own, given)

    def _own_config(self, adamw: AdamW, num_parameters: int) -> dict[str, Any]:
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
                **(self._limits_of_stage_3(num_parameters) if self.config.zero_stage == 3 else {}),
                # It replaces torch.nn.functional.linear for the whole process.
                "memory_efficient_linear": False,
                "offload_optimizer": {
                    "device": self.config.offload,
                    "pin_memory": self.world.device.type == "cuda",
                },
            },
            # Its own AdamW for the CPU would have to be compiled, and would be another one than everywhere else.
            "zero_force_ds_cpu_optimizer": False,
            # It waits for the device at every step.
            "timers": {"throughput": {"enabled": False}},
        }

    def _limits_of_stage_3(self, num_parameters: int) -> dict[str, int]:
        """By DeepSpeed's own, every rank would keep up to a billion gathered parameters: the whole of most models."""
        bucket = min(_BUCKET, num_parameters // 8 + 1)
        return {
            "reduce_bucket_size": bucket,
            "stage3_param_persistence_threshold": self.persist_below,
            "stage3_prefetch_bucket_size": bucket,
            "stage3_max_live_parameters": 2 * bucket,
            "stage3_max_reuse_distance": bucket,
            # The optimizer steps this much at a time, and each time gets its gradients as a copy.
            "sub_group_size": bucket,
        }

    def micro_batch(self, *, last: bool) -> AbstractContextManager[Any]:
        self._engine.set_gradient_accumulation_boundary(last)
        return gathered_weights_unsaved() if self.config.zero_stage == 3 else nullcontext()

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self, lr: float, step_filter: StepFilter | None = None) -> Tensor:
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        # It reads the norm on the host and leaves everything as it is where that is not finite; the norm is then inf.
        with self._filter_hook.asking(step_filter):
            self._engine.step()
        return self._norm()

    def _norm(self) -> Tensor:
        norm = self._engine.optimizer._global_grad_norm
        return torch.as_tensor(norm, dtype=torch.float32, device=self.world.device)

    def masters(self) -> Sequence[Tensor]:
        return self._partition.masters()

    def sync_params(self) -> None:
        self._partition.sync_params()

    def track_average(self) -> None:
        super().track_average()
        self._partition.average = self.average

    def local_shards(self) -> dict[str, LocalShard]:
        partition, rank = self._partition, self.world.rank
        owners = assign_owners(partition.shapes, self.world.size)
        steps = {_STEP.format(n): LocalShard.of(partition.step_of(n)) for n in partition.moving if owners[n] == rank}
        exact = {
            _KEYS["param"].format(name): LocalShard.of(tensor) for name, tensor in self._partition.frozen.exact.items()
        }
        buffers = self._buffers() if self.world.is_main else {}
        return {**self._partitioned(partition.keys()), **steps, **exact, **buffers}

    def _buffers(self) -> dict[str, LocalShard]:
        return {_KEYS["param"].format(name): LocalShard.of(b) for name, b in persistent_buffers(self.model).items()}

    def _partitioned(self, keys: Iterable[str]) -> dict[str, LocalShard]:
        """This rank's ranges of what is partitioned."""
        return {_KEYS[k].format(n): self._partition.shard(n, k) for n in self._partition.moving for k in keys}

    def load_state(self, folder: Path, *, optimizer: bool) -> None:
        average = self.average is not None and optimizer and holds_average(folder)
        keys = ("param", *(("exp_avg", "exp_avg_sq") if optimizer else ()), *(("ema",) if average else ()))
        known = {*self._partition.shapes, *persistent_buffers(self.model)}
        refuse_strangers(folder, known, self._partition.moving if optimizer else None)
        if optimizer:
            self._load_steps(folder)
        read_shards({**self._partitioned(keys), **self._buffers()}, folder, self._cpu_group)
        self._load_frozen(folder)
        self._partition.sync_params()
        if self.average is not None and not average:
            self.average.restart()

    def _load_steps(self, folder: Path) -> None:
        steps = {name: torch.zeros(()) for name in self._partition.moving}
        read_shards({_STEP.format(n): LocalShard.of(step) for n, step in steps.items()}, folder, self._cpu_group)
        self._partition.write_steps(steps)

    def _load_frozen(self, folder: Path) -> None:
        shapes = {name: self._partition.shapes[name] for name in self._partition.frozen.parameters}
        for names in chunked(shapes, _CHUNK_BYTES):
            read = {name: torch.empty(shapes[name]) for name in names}
            read_shards({_KEYS["param"].format(n): LocalShard.of(t) for n, t in read.items()}, folder, self._cpu_group)
            for name, whole in read.items():
                self._partition.frozen.write(name, whole)


# What is partitioned, and where it lies in a checkpoint.
_KEYS = {"param": "model.{}", "exp_avg": "optim.{}.exp_avg", "exp_avg_sq": "optim.{}.exp_avg_sq", "ema": "ema.{}"}
_STEP = "optim.{}.step"


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


def _partition_parameters(deepspeed: Any, model: nn.Module, settings: dict[str, Any], device: torch.device) -> None:
    """Stage 3: modules without memory get it one at a time, and each is cut into the ranks' shards before the next."""
    dtype = torch.bfloat16 if settings["bf16"]["enabled"] else torch.float32
    materialiser = Materialiser(device, dtype=dtype)
    first: Any = None
    for module in reversed(list(model.modules())):  # children first: Init goes through those too, and passes over them
        blank = materialiser.fill(module)
        if not blank:
            continue
        if first is None:
            deepspeed.zero.Init(module=module, config_dict_or_path=settings, dtype=dtype)
            first = next(module.parameters())
        else:  # Init again would read its settings again, which takes longer than all else
            first.convert_to_zero_parameters(param_list=blank)
