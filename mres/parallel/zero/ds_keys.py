"""The keys of a DeepSpeed JSON: which go to DeepSpeed, of what type, and which cannot, and why.

Taken from DeepSpeed 0.19.8 (its pydantic models, and deepspeed/runtime/constants.py where it has none):
tests/parallel/test_ds_config.py compares them with the DeepSpeed that is installed. Listed here, so that a file is
checked before anything heavy loads.
"""

from __future__ import annotations

from typing import Any

_DATA_TYPES: dict[str, Any] = {"grad_accum_dtype": str}
_BF16: dict[str, Any] = {
    "enabled": bool,
    "immediate_grad_update": bool,
    "check_grad_overflow": bool,
    "bf16_master_weights_and_grads": bool,
    "bf16_optimizer_states": bool,
}
_ZERO: dict[str, Any] = {
    "stage": int,
    "contiguous_gradients": bool,
    "reduce_scatter": bool,
    "reduce_bucket_size": int,
    "use_multi_rank_bucket_allreduce": bool,
    "allgather_partitions": bool,
    "allgather_bucket_size": int,
    "overlap_comm": bool,
    "compute_grad_norm": bool,
    "offload_optimizer": {"device": str, "pin_memory": bool},
    "sub_group_size": int,
    "stage3_prefetch_bucket_size": int,
    "stage3_param_persistence_threshold": int,
    "stage3_model_persistence_threshold": int,
    "stage3_max_live_parameters": int,
    "stage3_max_reuse_distance": int,
    "stage3_use_all_reduce_for_fetch_params": bool,
    "stage3_allgather_sequential": bool,
    "ignore_unused_parameters": bool,
    "round_robin_gradients": bool,
    "parameter_alignment": bool,
    "memory_efficient_linear": bool,
    "override_module_apply": bool,
    "log_trace_cache_warnings": bool,
    "enable_sanity_checks": bool,
    "leaf_module": {"classes": list, "names": list, "name_suffixes": list},
}

# Key → type, or the keys of an object.
PASSED: dict[str, Any] = {
    "train_batch_size": int,
    "train_micro_batch_size_per_gpu": int,
    "gradient_accumulation_steps": int,
    "gradient_clipping": float,
    "gradient_allreduce_op": str,
    "optimizer": {
        "type": str,
        "params": {"lr": float, "betas": list, "eps": float, "weight_decay": float},
    },
    "bf16": _BF16,
    "data_types": _DATA_TYPES,
    "communication_data_type": str,
    "zero_optimization": _ZERO,
    "zero_force_ds_cpu_optimizer": bool,
    "zero_allow_untested_optimizer": bool,
    "prescale_gradients": bool,
    "gradient_predivide_factor": float,
    "disable_allgather": bool,
    "disable_python_gc": bool,
    "steps_per_print": int,
    "wall_clock_breakdown": bool,
    "memory_breakdown": bool,
    "dump_state": bool,
    "log_level": str,
    "timers": {"throughput": {"enabled": bool, "synchronized": bool}},
    "comms_logger": {"enabled": bool, "prof_all": bool, "prof_ops": list, "verbose": bool, "debug": bool},
    "flops_profiler": {
        "enabled": bool,
        "recompute_fwd_factor": float,
        "profile_step": int,
        "module_depth": int,
        "top_modules": int,
        "detailed": bool,
        "output_file": str,
    },
}

_CHECKPOINTS = "checkpoints are mres's own, of one form for all strategies (section checkpoint)"
_METRICS = (
    "metrics are mres's own (metrics.jsonl, tensorboard/); DeepSpeed does not know the batch and would count it wrong"
)
_DATA = "batches come from mres's stream (section data)"
_OFFLOAD = "say parallel.offload=cpu"
_SWAPPING = "masters and moments stay in memory, where checkpoints read them"
_REMOVED = "DeepSpeed has removed it"
_ANOTHER_MODEL = "it is for another way to split a model than ZeRO"

# Dotted path → why it cannot go to DeepSpeed here.
REFUSED: dict[str, str] = {
    "activation_checkpointing": "say parallel.activation_checkpointing",
    "compile": "say parallel.compile",
    "scheduler": "the schedule is optim.lr, optim.min_lr and optim.warmup_steps",
    "fp16": "compute is float32 or bfloat16: say parallel.compute_dtype",
    "bfloat16": "its name is bf16",
    "torch_autocast": "precision is one policy for all strategies: say parallel.compute_dtype",
    "weight_quantization": "it is for inference",
    "hybrid_engine": "it is for text generation",
    "autotuning": "mres starts its own ranks",
    "managed_gradient_accumulation": "mres says where a step ends (train.accumulate)",
    "vocabulary_size": "it only warns",
    **dict.fromkeys(("checkpoint", "datastates_ckpt"), _CHECKPOINTS),
    **dict.fromkeys(("tensorboard", "wandb", "csv_monitor", "comet"), _METRICS),
    **dict.fromkeys(("data_efficiency", "dataloader_drop_last"), _DATA),
    **dict.fromkeys(
        ("pipeline", "tensor_parallel", "expert_parallel", "use_data_before_expert_parallelism"), _ANOTHER_MODEL
    ),
    "seq_parallel_communication_data_type": _ANOTHER_MODEL,
    "aio": _SWAPPING,
    **dict.fromkeys(
        (
            "amp", "compression_training", "curriculum_learning", "eigenvalue", "elasticity", "graph_harvesting", "nebula",
            "progressive_layer_drop", "quantize_training", "sparse_attention", "sparse_gradients",
            "zero_optimization.mics_shard_size", "zero_optimization.mics_hierarchical_params_gather",
            "zero_optimization.zeropp_loco_param",
        ),
        _REMOVED,
    ),
    "data_types.param_dtype": "say parallel.compute_dtype",
    "data_types.buffer_dtype": "buffers keep their type",
    "data_types.keep_in_fp32_modules": "precision is one policy for the whole model: say parallel.compute_dtype",
    "zero_optimization.offload_param": f"weights stay on the device, where checkpoints write them; {_OFFLOAD}",
    "zero_optimization.cpu_offload": _OFFLOAD,
    "zero_optimization.cpu_offload_param": _OFFLOAD,
    "zero_optimization.cpu_offload_use_pin_memory": _OFFLOAD,
    "zero_optimization.zenflow": "it is another optimizer than the other strategies have",
    "zero_optimization.save_muon_momentum_buffer_in_memory": "the optimizer is AdamW",
    "zero_optimization.legacy_stage1": "checkpoints cannot read the state of that optimizer",
    "zero_optimization.zero_hpz_partition_size": "loading would leave its second copy of the weights as it was",
    "zero_optimization.zero_quantized_weights": "weights are computed with in parallel.compute_dtype under every strategy",
    "zero_optimization.zero_quantized_gradients": "gradients are added up and reduced in float32 under every strategy",
    "zero_optimization.stage3_module_granularity_threshold": "DeepSpeed 0.19 fails in the first step with it",
    "zero_optimization.zero_quantized_nontrainable_weights": "loading cannot write quantised weights",
    **dict.fromkeys(
        (
            "zero_optimization.elastic_checkpoint", "zero_optimization.load_from_fp32_weights",
            "zero_optimization.pipeline_loading_checkpoint",
            "zero_optimization.stage3_gather_16bit_weights_on_model_save",
            "zero_optimization.stage3_gather_fp16_weights_on_model_save",
        ),
        _CHECKPOINTS,
    ),
    **dict.fromkeys(
        (f"zero_optimization.offload_optimizer.{key}" for key in (
            "nvme_path", "buffer_count", "pipeline_read", "pipeline_write", "fast_init",
        )),
        _SWAPPING,
    ),
    **dict.fromkeys(
        (f"zero_optimization.offload_optimizer.{key}" for key in ("ratio", "super_offload", "cpuadam_cores_perc")),
        "the optimizer is torch's AdamW, all of it on the host",
    ),
}  # fmt: skip
