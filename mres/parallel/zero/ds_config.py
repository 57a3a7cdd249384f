"""`parallel.ds_config`: a DeepSpeed JSON beside the run's own config, strict.

DeepSpeed takes a mistyped key of the top level without a word, and a batch size or a clipping that is not the run's.
Here every key must be known, and one that the run's config decides must say the same (or "auto": the run's). What is
left is merged into what mres tells DeepSpeed anyway.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mres.credentials import names_secret, refusal
from mres.errors import UserError, near
from mres.io.json_files import JsonError, read_json
from mres.parallel.config import ParallelConfig
from mres.parallel.zero.ds_keys import PASSED, REFUSED

_MAX_BYTES = 1 << 20
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a string", list: "a list"}


def read_ds_config(path: Path) -> dict[str, Any]:
    """The keys of the file that ask for something: "auto" and sections that are not enabled are left out.

    Raises:
        UserError: no file, no JSON, an unknown key (with near names), one that mres cannot pass on, a wrong type,
            a credential anywhere in it, also where nothing is enabled: the run keeps a copy of the file.
    """
    try:
        values = read_json(path, max_bytes=_MAX_BYTES)
    except OSError as error:
        raise UserError(f"cannot read parallel.ds_config='{path}': {error.strerror}") from None
    except JsonError as error:
        raise UserError(f"parallel.ds_config: {error}") from None
    _refuse_credentials(values, "", path)
    return _checked(values, PASSED, "", path)


def _refuse_credentials(value: Any, dotted: str, path: Path) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            name = f"{dotted}.{key}".lstrip(".")
            if names_secret(key) and item != "auto" and _is_text_or_number(item):
                raise UserError(
                    f"'{name}' has a credential in it, and the run keeps a copy of the file: take it out, and give it "
                    f"by an environment variable (COMET_API_KEY, WANDB_API_KEY …) to what needs it ({path})"
                )
            if problem := refusal(key):
                raise UserError(f"a key of {dotted or 'the file'}: {problem} ({path})")
            _refuse_credentials(item, name, path)
    elif isinstance(value, list):
        for item in value:
            _refuse_credentials(item, dotted, path)
    elif isinstance(value, str) and (problem := refusal(value)):
        raise UserError(f"{dotted or 'the file'}: {problem} ({path})")


def _is_text_or_number(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool) and value != ""


def _checked(values: Any, known: dict[str, Any], prefix: str, path: Path) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise UserError(f"{prefix.rstrip('.') or 'the file'} = {values!r}: an object is due ({path})")
    kept: dict[str, Any] = {}
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if dotted in REFUSED:
            if not _asks_nothing(value):
                raise UserError(f"'{dotted}' cannot go to DeepSpeed here: {REFUSED[dotted]} ({path})")
        elif key not in known:
            raise UserError(f"unknown key '{dotted}' ({path}); {_hint(dotted, known)}")
        elif isinstance(known[key], dict):
            kept[key] = _checked(value, known[key], f"{dotted}.", path)
        elif value != "auto":
            if not _is(value, known[key]):
                raise UserError(f"{dotted} = {json.dumps(value)}: {_NAMES[known[key]]} is due ({path})")
            kept[key] = value
    return kept


def _asks_nothing(value: Any) -> bool:
    """A section of another framework's template that is switched off, or left to whoever starts DeepSpeed."""
    return value == "auto" or (isinstance(value, dict) and value.get("enabled") in (False, "auto"))


def _is(value: Any, kind: type) -> bool:
    if kind in (int, float):  # bucket sizes are written as 5e8
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return number and (kind is float or value == int(value))
    return isinstance(value, kind)


def _hint(dotted: str, known: dict[str, Any]) -> str:
    """The key that was probably meant: in the same object, or anywhere."""
    prefix, _, key = dotted.rpartition(".")
    anywhere = {path.rpartition(".")[2]: path for path in (*REFUSED, *_paths(PASSED))}
    here = {name: f"{prefix}.{name}".lstrip(".") for name in known}
    return near(key, here, anywhere, otherwise=f"allowed{f' in {prefix}' if prefix else ''}: {', '.join(known)}")


def _paths(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _paths(value, f"{prefix}{key}.")


def decided(
    parallel: ParallelConfig, optim: Mapping[str, Any], *, images_per_batch: int, accumulate: int, world_size: int
) -> dict[str, tuple[Any, str]]:
    """What the run's config decides: path in the JSON → (the value that would say the same, who says so)."""
    share = images_per_batch // world_size // accumulate
    batch = f"data.images_per_batch={images_per_batch}"
    adamw = {key: list(optim[key]) if key == "betas" else optim[key] for key in ("lr", "betas", "eps", "weight_decay")}
    half = parallel.compute_dtype == "bfloat16"
    reduction = "gradients are added up and reduced in float32 under every strategy"
    masters = "masters and moments are float32 under every strategy"
    return {
        "train_batch_size": (images_per_batch, batch),
        "train_micro_batch_size_per_gpu": (
            share,
            f"{batch} over {world_size} rank(s) and train.accumulate={accumulate}",
        ),
        "gradient_accumulation_steps": (accumulate, f"train.accumulate={accumulate}"),
        "gradient_clipping": (optim["max_grad_norm"], f"optim.max_grad_norm={optim['max_grad_norm']}"),
        "gradient_allreduce_op": ("mean", "the loss counts on the mean over ranks"),
        "optimizer.type": ("AdamW", "the optimizer is AdamW under every strategy"),
        **{f"optimizer.params.{key}": (value, f"optim.{key}={value}") for key, value in adamw.items()},
        "bf16.enabled": (half, f"parallel.compute_dtype={parallel.compute_dtype}"),
        "bf16.check_grad_overflow": (True, "a step that is not finite is skipped under every strategy"),
        "bf16.immediate_grad_update": (False, reduction),
        "bf16.bf16_master_weights_and_grads": (False, masters),
        "bf16.bf16_optimizer_states": (False, masters),
        "communication_data_type": ("fp32", reduction),
        "data_types.grad_accum_dtype": ("fp32", reduction),
        "zero_force_ds_cpu_optimizer": (False, "the optimizer is torch's AdamW under every strategy"),
        "zero_optimization.stage": (parallel.zero_stage, f"parallel.zero_stage={parallel.zero_stage}"),
        "zero_optimization.compute_grad_norm": (True, "the norm clips, and shows steps that are not finite"),
        "zero_optimization.offload_optimizer.device": (parallel.offload, f"parallel.offload={parallel.offload}"),
    }


def check_ds_config(
    parallel: ParallelConfig, optim: Mapping[str, Any], *, images_per_batch: int, accumulate: int, world_size: int
) -> None:
    """Refuses a file that cannot be read or contradicts the run's config; does nothing without one.

    Args:
        parallel: names the file.
        optim: the section's values by key.
        images_per_batch: of all ranks together.
        accumulate: micro-batches a step.
        world_size: number of ranks.

    Raises:
        UserError: names the key in the file and the run's.
    """
    if parallel.ds_config is None:
        return
    path = Path(parallel.ds_config)
    given = read_ds_config(path)
    run = decided(parallel, optim, images_per_batch=images_per_batch, accumulate=accumulate, world_size=world_size)
    for dotted, (value, says) in run.items():
        found = _at(given, dotted)
        if found is not None and found != value and not (dotted == "optimizer.type" and found.lower() == "adamw"):
            raise UserError(
                f"{dotted} = {json.dumps(found)} ({path}) contradicts the run: {says}; "
                f"make it {json.dumps(value)}, or leave it out of the file"
            )


def _at(values: dict[str, Any], dotted: str) -> Any:
    for key in dotted.split("."):
        values = values.get(key, {}) if isinstance(values, dict) else {}
    return None if values == {} else values


def merged(own: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """What mres tells DeepSpeed (`own`) with the rest of the file (`given`), which wins where the run decides nothing."""
    return _merge(own, given, "")


@contextmanager
def refusals_named(path: str | None) -> Iterator[None]:
    """Around what DeepSpeed does with its config: values out of range, and keys that exclude one another.

    Raises:
        UserError: with DeepSpeed's own words and the file; without a file, its error is left as it is.
    """
    try:
        yield
    except (ValueError, AssertionError, NotImplementedError) as error:
        if path is None:
            raise
        words = " ".join(str(error).split())
        raise UserError(f"DeepSpeed refuses what parallel.ds_config='{path}' asks for: {words}") from error


# They stand in `own` already, or nowhere because mres does it.
_DECIDED = (
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
    "gradient_allreduce_op", "optimizer", "bf16", "communication_data_type", "data_types",
    "zero_force_ds_cpu_optimizer", "zero_optimization.stage", "zero_optimization.offload_optimizer.device",
)  # fmt: skip


def _merge(own: dict[str, Any], given: dict[str, Any], prefix: str) -> dict[str, Any]:
    result = dict(own)
    for key, value in given.items():
        if f"{prefix}{key}" in _DECIDED:
            continue
        if isinstance(value, dict):
            value = _merge(result.get(key, {}), value, f"{prefix}{key}.")
            if not value:
                continue
        result[key] = value
    return result
