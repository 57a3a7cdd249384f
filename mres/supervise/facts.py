"""What a run is made of, in words: what must be the same on all ranks, and what `environment.json` keeps."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mres.config import Config
from mres.io.files import bytes_sha256, file_sha256
from mres.io.plugins import origin
from mres.model.spec import origin_of_kind
from mres.stream.config import local_batch_size
from mres.stream.loader import TrainingStream
from mres.stream.sets import TrainingSets
from mres.supervise.software import code_sha256, git_sha, package_versions, texts_sha256
from mres.supervise.world import World


def facts_of_run(config: Config, stream: TrainingStream, last_step: int, world_size: int) -> dict[str, str | None]:
    """What must be the same on all ranks before a model is built."""
    share = local_batch_size(config.data.images_per_batch, world_size)
    return {
        **{f"config {key}": value for key, value in _flat(config.model_dump(mode="json"))},
        "model.kind (SHA-256 of its file)": origin_of_kind(config.model.kind).get("kind_sha256"),
        **{f"{own} (SHA-256 of its file)": origin(own)[1] for own in config.train.callbacks},
        "parallel.ds_config (SHA-256 of the file)": ds_config_sha256(config),
        "code (hash of mres/*.py)": code_sha256(),
        "git sha": git_sha(),
        "python": platform.python_version(),
        **{f"package {name}": version for name, version in package_versions().items()},
        "planned steps": str(last_step),
        "data (fingerprint)": stream.sets.fingerprint,
        "order of images": stream.order.description(),
        "images a rank and step": str(share),
    }


def environment(config: Config, world: World, sets: TrainingSets) -> dict[str, Any]:
    """What a run ran on: git sha, hash of its config, versions, world, data."""
    return {
        "git_sha": git_sha(),
        "config_sha256": config_sha256(config),
        "ds_config_sha256": ds_config_sha256(config),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": package_versions(),
        "world_size": world.size,
        "local_world_size": world.local_size,
        "device": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "data": [{"folder": shards.location, "fingerprint": shards.fingerprint} for shards in sets],
    }


def config_sha256(config: Config) -> str:
    """Hash of all keys and of the content of the file that `parallel.ds_config` names."""
    return bytes_sha256(f"{config.sha256()} {ds_config_sha256(config)}".encode())


def ds_config_sha256(config: Config) -> str | None:
    """Hash of the file; none where no file is named, or this rank does not have it."""
    try:
        return None if config.parallel.ds_config is None else file_sha256(Path(config.parallel.ds_config))
    except OSError:
        return None


def facts_of_model(model: nn.Module) -> dict[str, str | None]:
    """Names, shapes and what is trained, as one hash a child of the model."""
    return {
        f"model.{name} (hash of names and shapes)": texts_sha256(
            f"{n} {tuple(p.shape)} {p.dtype} {p.requires_grad}\n" for n, p in child.named_parameters()
        )
        for name, child in model.named_children()
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value)
