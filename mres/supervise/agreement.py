"""Agreement before the start: all ranks run the same steps of the same config, code and packages on the same data.

A difference ends the run on all ranks within seconds, with the ranks and keys named; found later, it would be a
collective that waits for its time-out, or a model that is silently trained by two kinds of code.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import nn

from mres.config import Config
from mres.errors import UserError
from mres.io.files import bytes_sha256, file_sha256
from mres.parallel.strategy import Strategy
from mres.stream.config import local_batch_size
from mres.stream.loader import TrainingStream

PACKAGES = (
    "mres", "torch", "deepspeed", "timm", "open_clip_torch", "numpy", "simplejpeg", "pillow", "pycocotools", "webdataset",
)  # fmt: skip
_HERE = Path(__file__).resolve().parents[1]
_MOST_LINES = 20


def check_agreement(strategy: Strategy, mine: Mapping[str, str | None]) -> None:
    """Compares `mine` over all ranks, which call it together.

    Raises:
        UserError: on every rank, naming each key that differs and which ranks have which value of it.
    """
    text = json.dumps(mine, sort_keys=True)
    # In all runs but the wrong ones 16 bytes a rank are all that travels.
    if len(set(strategy.all_gather_object(hashlib.md5(text.encode(), usedforsecurity=False).digest()))) == 1:
        return
    lines = differences(strategy.all_gather_object(mine))
    left_out = [f"… and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else []
    listed = "\n".join(f"  {line}" for line in [*lines[:_MOST_LINES], *left_out])
    raise UserError(
        f"the ranks do not agree on what to run:\n{listed}\nstart all of them with the same command, files and environment"
    )


def differences(all_ranks: Sequence[Mapping[str, str | None]]) -> list[str]:
    """A line for each key on which ranks differ; the ranks that have the same value are named together."""
    found = []
    for key in dict.fromkeys(key for facts in all_ranks for key in facts):
        by_value: dict[str | None, list[int]] = {}
        for rank, facts in enumerate(all_ranks):
            by_value.setdefault(facts.get(key), []).append(rank)
        if len(by_value) > 1:
            few_first = sorted(by_value.items(), key=lambda item: (len(item[1]), item[1]))
            found.append(f"{key}: " + ", ".join(f"{_ranks(ranks)} {_has(ranks)} {value}" for value, ranks in few_first))
    return found


def facts_of_run(config: Config, stream: TrainingStream, last_step: int, world_size: int) -> dict[str, str | None]:
    """What must be the same on all ranks before a model is built."""
    share = local_batch_size(config.data.images_per_batch, world_size)
    return {
        **{f"config {key}": value for key, value in _flat(config.model_dump(mode="json"))},
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
        f"model.{name} (hash of names and shapes)": _sha256(
            f"{n} {tuple(p.shape)} {p.dtype} {p.requires_grad}\n" for n, p in child.named_parameters()
        )
        for name, child in model.named_children()
    }


def package_versions() -> dict[str, str | None]:
    return {name: _version(name) for name in PACKAGES}


def code_sha256() -> str:
    """Hash of the package's own source: it tells apart what no commit does."""
    return _sha256(f"{p.relative_to(_HERE)}\n{p.read_text(encoding='utf-8')}" for p in sorted(_HERE.rglob("*.py")))


def git_sha() -> str | None:
    """The commit that the code is of, where it lies in a repository."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=_HERE, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def _sha256(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode())
    return digest.hexdigest()[:12]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value)


def _ranks(ranks: Sequence[int]) -> str:
    """[0, 1, 2, 5] as "ranks 0-2, 5"."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][-1] + 1:
            spans[-1] = [spans[-1][0], rank]
        else:
            spans.append([rank])
    text = ", ".join("-".join(map(str, span)) for span in spans)
    return f"rank {text}" if len(ranks) == 1 else f"ranks {text}"


def _has(ranks: Sequence[int]) -> str:
    return "has" if len(ranks) == 1 else "have"
