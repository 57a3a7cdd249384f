"""`parallel.ds_config`: what goes to DeepSpeed, what is refused and in which words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mres.config import Config, load_config
from mres.errors import UserError
from mres.parallel.zero.ds_config import merged, read_ds_config, refusals_named
from mres.parallel.zero.ds_keys import PASSED, REFUSED
from mres.ranks import check_ranks

ZERO = ["parallel.strategy=zero", "data.images_per_batch=32", "train.accumulate=2"]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes ds.json (JSON of a value, or text) and returns its path."""
    monkeypatch.chdir(tmp_path)

    def write(content: Any) -> Path:
        path = Path("ds.json")
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


def message(path: Path, *overrides: str, world_size: int = 4) -> str:
    with pytest.raises(UserError) as caught:
        check(path, *overrides, world_size=world_size)
    return str(caught.value)


def check(path: Path, *overrides: str, world_size: int = 4) -> Config:
    config = load_config(None, [*ZERO, f"parallel.ds_config={path}", *overrides])
    check_ranks(config, world_size, None)
    return config


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"gradient_clipp1ng": 1.0}, "unknown key 'gradient_clipp1ng' (ds.json); did you mean 'gradient_clipping'?"),
        (
            {"zero_optimization": {"overlap_com": True}},
            "unknown key 'zero_optimization.overlap_com' (ds.json); did you mean 'zero_optimization.overlap_comm'?",
        ),
        ({"overlap_comm": True}, "did you mean 'zero_optimization.overlap_comm'?"),
        (
            {"zero_optimization": {"prefetch_bucket_size": 5}},
            "did you mean 'zero_optimization.stage3_prefetch_bucket_size'?",
        ),
        ({"timers": {"zebra": 1}}, "unknown key 'timers.zebra' (ds.json); allowed in timers: throughput"),
        ({"zero_optimization": True}, "zero_optimization = True: an object is due (ds.json)"),
        ([1], "the file = [1]: an object is due"),
        (
            {"zero_optimization": {"overlap_comm": "yes"}},
            'zero_optimization.overlap_comm = "yes": true or false is due',
        ),
        ({"zero_optimization": {"reduce_bucket_size": 1.5}}, "reduce_bucket_size = 1.5: a whole number is due"),
        ({"zero_optimization": {"reduce_bucket_size": True}}, "reduce_bucket_size = true: a whole number is due"),
        ('{"bf16": {}, "bf16": {}}', "the key 'bf16' is written twice"),
        ('{"bf16": ', "'ds.json': not JSON (Expecting value: line 1 column 10"),
        ("[" * 100_000, "'ds.json': it is nested more than"),
        (" " * (1 << 20) + "{}", "at most 1,048,576 are read"),
        ({"scheduler": {"type": "WarmupLR"}}, "'scheduler' cannot go to DeepSpeed here: the schedule is optim.lr"),
        ({"fp16": {"enabled": True}}, "compute is float32 or bfloat16: say parallel.compute_dtype"),
        ({"zero_optimization": {"offload_param": {"device": "cpu"}}}, "say parallel.offload=cpu"),
        ({"zero_optimization": {"cpu_offload": True}}, "'zero_optimization.cpu_offload' cannot go"),
        ({"elasticity": {"version": 1}}, "DeepSpeed has removed it"),
        ('{"steps_per_print": NaN}', "steps_per_print = NaN: a whole number is due (ds.json)"),
        (
            '{"zero_optimization": {"reduce_bucket_size": Infinity}}',
            "reduce_bucket_size = Infinity: a whole number is due",
        ),
        ('{"zero_optimization": {"reduce_bucket_size": 1e999}}', "a whole number is due"),
        ('{"gradient_predivide_factor": -1e999}', "a number is due"),
        ({"zero_optimization": {"zero_quantized_gradients": True}}, "added up and reduced in float32"),
        ({"zero_optimization": {"zero_quantized_weights": True}}, "parallel.compute_dtype under every strategy"),
        ({"zero_optimization": {"stage3_module_granularity_threshold": 9}}, "fails in the first step"),
    ],
)
def test_what_cannot_be_read_or_passed_on(file, content: Any, words: str) -> None:
    text = message(file(content))
    assert words in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"train_batch_size": 64}, "train_batch_size = 64 (ds.json) contradicts the run: data.images_per_batch=32; make it 32"),
        (
            {"train_micro_batch_size_per_gpu": 8},
            "contradicts the run: data.images_per_batch=32 over 4 rank(s) and train.accumulate=2; make it 4",
        ),
        ({"gradient_accumulation_steps": 1}, "contradicts the run: train.accumulate=2"),
        ({"gradient_clipping": 0.5}, "gradient_clipping = 0.5 (ds.json) contradicts the run: optim.max_grad_norm=1.0"),
        ({"gradient_clipping": 0}, "optim.max_grad_norm=1.0"),
        ({"bf16": {"enabled": True}}, "bf16.enabled = true (ds.json) contradicts the run: parallel.compute_dtype=float32"),
        ({"zero_optimization": {"stage": 3}}, "contradicts the run: parallel.zero_stage=2; make it 2"),
        ({"zero_optimization": {"stage": 0}}, "parallel.zero_stage=2"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "contradicts the run: parallel.offload=none"),
        ({"optimizer": {"type": "Lamb"}}, "the optimizer is AdamW under every strategy"),
        ({"optimizer": {"params": {"lr": 1.0}}}, "optimizer.params.lr = 1.0 (ds.json) contradicts the run: optim.lr=1e-05"),
        ({"optimizer": {"params": {"betas": [0.9, 0.95]}}}, "contradicts the run: optim.betas=[0.9, 0.999]"),
        ({"communication_data_type": "fp16"}, "gradients are added up and reduced in float32"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "gradients are added up and reduced in float32"),
        ({"gradient_allreduce_op": "sum"}, "the loss counts on the mean"),
        ({"zero_optimization": {"compute_grad_norm": False}}, "the norm clips"),
    ],
)  # fmt: skip
def test_a_contradiction_names_both_places(file, content: Any, words: str) -> None:
    text = message(file(content))
    assert words in text
    assert "\n" not in text


def test_a_file_that_says_the_same_and_leaves_the_rest_to_the_run(file) -> None:
    """As templates of other frameworks are: "auto" is the run's value, and what is switched off asks for nothing."""
    path = file(
        {
            "train_batch_size": 32, "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": 2,
            "gradient_clipping": "auto", "bf16": {"enabled": True}, "fp16": {"enabled": "auto", "loss_scale": 0},
            "optimizer": {"type": "adamw", "params": {"lr": 1e-5, "betas": [0.9, 0.999], "eps": "auto"}},
            "zero_optimization": {
                "stage": 3, "overlap_comm": True, "reduce_bucket_size": 5e8, "stage3_prefetch_bucket_size": "auto",
                "offload_optimizer": {"device": "cpu", "pin_memory": True},
            },
            "activation_checkpointing": "auto", "wall_clock_breakdown": False, "steps_per_print": 100,
        }
    )  # fmt: skip
    same = ["parallel.compute_dtype=bfloat16", "parallel.zero_stage=3", "parallel.offload=cpu"]
    check(path, *same)
    own = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 3, "reduce_bucket_size": 7, "offload_optimizer": {"device": "cpu"}},
    }
    assert merged(own, read_ds_config(path)) == {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "zero_optimization": {
            "stage": 3, "overlap_comm": True, "reduce_bucket_size": 5e8,
            "offload_optimizer": {"device": "cpu", "pin_memory": True},
        },
        "wall_clock_breakdown": False,
        "steps_per_print": 100,
    }  # fmt: skip
    assert own["zero_optimization"] == {"stage": 3, "reduce_bucket_size": 7, "offload_optimizer": {"device": "cpu"}}


def test_a_file_is_for_zero_only_and_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ds_config=.* has an effect with strategy=zero only, not with strategy=fsdp"):
        load_config(None, ["parallel.ds_config=ds.json"])
    assert "cannot read parallel.ds_config=" in message(tmp_path / "none.json")


# --- beside the DeepSpeed that is installed ---


def test_the_list_is_deepspeeds() -> None:
    """Every key that its models have, and that it asks a config for, is passed on or refused with a reason; no other is."""
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.runtime.config import _REMOVED_TOP_LEVEL_CONFIG_KEYS, _REMOVED_ZERO_CONFIG_KEYS
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.leaf_module_config import DeepSpeedZeroLeafModuleConfig
    from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    models = {
        "zero_optimization": DeepSpeedZeroConfig,
        "zero_optimization.offload_optimizer": DeepSpeedZeroOffloadOptimizerConfig,
        "zero_optimization.leaf_module": DeepSpeedZeroLeafModuleConfig,
        "bf16": DeepSpeedBF16Config,
        "comms_logger": CommsLoggerConfig,
        "timers.throughput": DeepSpeedThroughputTimerConfig,
    }
    for prefix, model in models.items():
        removed = set(_REMOVED_ZERO_CONFIG_KEYS) if prefix == "zero_optimization" else set()
        assert ours(prefix) == {field.alias or name for name, field in model.model_fields.items()} | removed, prefix
    assert ours("") == asked() | set(_REMOVED_TOP_LEVEL_CONFIG_KEYS)


def ours(prefix: str) -> set[str]:
    tree: Any = PASSED
    for key in filter(None, prefix.split(".")):
        tree = tree[key]
    refused = {path.rpartition(".") for path in REFUSED}
    return set(tree) | {key for section, _, key in refused if section == prefix}


def asked() -> set[str]:
    """The keys that DeepSpeed looks up in a config."""
    from deepspeed.runtime.config import DeepSpeedConfig

    seen: set[str] = set()

    class Recorder(dict):
        def get(self, key, default=None):
            seen.add(key)
            return super().get(key, default)

        def __contains__(self, key):
            seen.add(key)
            return super().__contains__(key)

        def keys(self):
            return self

    sections = ("optimizer", "scheduler", "torch_autocast")
    DeepSpeedConfig(Recorder(train_micro_batch_size_per_gpu=1, **{name: {"type": "x"} for name in sections}))
    return seen


def test_deepspeed_has_the_last_word_on_values() -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2, "reduce_bucket_size": 0}}
    with pytest.raises(UserError) as caught, refusals_named("ds.json"):
        DeepSpeedConfig(settings)
    assert "DeepSpeed refuses what parallel.ds_config='ds.json' asks for: 1 validation error" in str(caught.value)
    assert "reduce_bucket_size" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="reduce_bucket_size"), refusals_named(None):
        DeepSpeedConfig(settings)


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"comet": {"enabled": False, "api_key": "s3cr3t"}}, "comet.api_key"),
        ({"wandb": {"enabled": "auto", "login": [{"PASSWORD": 123456}]}}, "wandb.login.PASSWORD"),
        ({"nebula": {"enabled": False, "auth-token": "s3cr3t"}}, "nebula.auth-token"),
        ({"secret": "s3cr3t"}, "secret"),
        ({"tensorboard": {"enabled": False, "output_path": "s3://k:s3cr3t@b/x"}}, "tensorboard.output_path"),
        ({"flops_profiler": {"output_file": "https://h/x?sig=s3cr3t"}}, "flops_profiler.output_file"),
        ({"csv_monitor": {"enabled": False, "x": ["a", "https://u:s3cr3t@h"]}}, "csv_monitor.x"),
        ({"csv_monitor": {"enabled": False, "https://u:s3cr3t@h": 1}}, "csv_monitor"),
    ],
)
def test_credentials_are_refused_wherever_they_stand_and_not_repeated(content: Any, key: str, file) -> None:
    """The run keeps a copy of the file."""
    said = message(file(content))
    assert key in said
    assert "ds.json" in said
    assert "environment variable" in said or "AWS_PROFILE" in said
    assert "s3cr3t" not in said
    assert "123456" not in said


def test_what_is_only_named_alike_is_no_credential(file) -> None:
    alike = {
        "enabled": False,
        "layer_token_lr_schedule": {"enabled": False},
        "api_key": "auto",
        "token": "",
        "key": None,
    }
    assert read_ds_config(file({"comet": alike, "data_efficiency": alike, "steps_per_print": 10})) == {
        "steps_per_print": 10
    }
