"""Checkpoints of a run: written aside, published by rename, verified before use.

    checkpoints/step-00001000/{DCP files, state.json, config.yaml, MANIFEST.json}

A folder without MANIFEST.json, or one whose files do not match it, is never resumed from.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mres.errors import UserError
from mres.parallel.strategy import Strategy

FORMAT = "mres-checkpoint-1"
_MANIFEST = "MANIFEST.json"


class CheckpointError(UserError):
    """A checkpoint that cannot be used; the message says which file and why."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A published checkpoint that was verified."""

    folder: Path
    step: int
    state: dict[str, Any]


def save(root: Path, step: int, strategy: Strategy, state: dict[str, Any], config_yaml: str, *, keep: int) -> Path:
    """Writes and publishes a checkpoint; called by all ranks together, which succeed or fail together.

    Raises:
        CheckpointError: nothing was published (disk full, no permission); older checkpoints stand.
    """
    final = root / f"step-{step:08d}"
    part = root / f"{final.name}.incomplete"
    main = strategy.world.is_main
    _together(strategy, final, lambda: _fresh(part) if main else None)
    _together(strategy, final, lambda: strategy.save_state(part))
    _together(strategy, final, lambda: _publish(part, final, step, state, config_yaml) if main else None)
    if main:
        _prune(root, keep)
    return final


def _together(strategy: Strategy, final: Path, action: Any) -> None:
    """Runs `action` on every rank; a failure anywhere becomes the same error everywhere instead of a hang."""
    problem = ""
    try:
        action()
    except Exception as error:  # whatever one rank met (a full disk, DCP's own exception), all ranks must learn of it
        problem = f"{type(error).__name__}: {error}".strip()
    if strategy.agree([float(bool(problem))])[0]:
        reasons = sorted({p for p in strategy.same_everywhere(problem) if p})
        raise CheckpointError(
            f"checkpoint {final} was not written: {reasons[0][:500]}; checkpoints written before it stand, "
            "run the same command again to go on from them"
        )


def _fresh(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _publish(part: Path, final: Path, step: int, state: dict[str, Any], config_yaml: str) -> None:
    (part / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
    (part / "config.yaml").write_text(config_yaml, encoding="utf-8")
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(part.iterdir())}
    manifest = {"format": FORMAT, "step": step, "files": files}
    (part / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in [*part.iterdir(), part]:
        _fsync(path)
    if final.exists():  # the same step again, after a rewind: the new one has the same content or better
        shutil.rmtree(final)
    part.rename(final)
    _fsync(final.parent)


def verify(folder: Path) -> Checkpoint:
    """Checks every file's size and hash.

    Raises:
        CheckpointError: naming the file that is missing or damaged.
    """
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        files, step = manifest["files"], manifest["step"]
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {_MANIFEST}: it is no checkpoint, or one that was not finished") from None
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{folder / _MANIFEST} is damaged") from None
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{folder} has format {manifest.get('format')!r}, this version of mres reads {FORMAT!r}")
    for name, expected in files.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise CheckpointError(f"{path} is missing")
        if path.stat().st_size != expected["bytes"] or _sha256(path) != expected["sha256"]:
            raise CheckpointError(f"{path} is damaged (size or hash differ from {_MANIFEST})")
    return Checkpoint(folder, step, json.loads((folder / "state.json").read_text(encoding="utf-8")))


def published(root: Path) -> list[Path]:
    """The checkpoint folders below `root`, newest first, finished ones only."""
    if not root.is_dir():
        return []
    return sorted((p for p in root.glob("step-*") if (p / _MANIFEST).is_file()), key=lambda p: p.name, reverse=True)


def newest(root: Path) -> Iterator[Checkpoint | CheckpointError]:
    """Walks back from the newest checkpoint: errors for the damaged ones, then the first good one, then ends."""
    for folder in published(root):
        try:
            yield verify(folder)
            return
        except CheckpointError as error:
            yield error


def locate(path: Path) -> Checkpoint:
    """The checkpoint that a user means by a run's folder, its checkpoints/ folder or a checkpoint's own folder.

    Raises:
        CheckpointError: nothing there, or nothing good.
    """
    if (path / _MANIFEST).is_file():
        return verify(path)
    problems = []
    for root in (path / "checkpoints", path):
        for found in newest(root):
            if isinstance(found, Checkpoint):
                return found
            problems.append(str(found))
    detail = f" ({'; '.join(problems)})" if problems else ""
    if not path.exists():
        raise CheckpointError(f"no such checkpoint or run: '{path}'")
    raise CheckpointError(f"no finished checkpoint in '{path}'{detail}; name a run's folder or one of its checkpoints/step-*")


def _prune(root: Path, keep: int) -> None:
    for folder in published(root)[keep:]:
        shutil.rmtree(folder)
    for folder in root.glob("step-*.incomplete"):
        shutil.rmtree(folder)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
