"""The checkpoints of a run: which there are, and which is meant.

    checkpoints/step-00001000/{DCP files, state.json, config.yaml, MANIFEST.json}

Only a folder of that name counts, and only if its files match its MANIFEST.json. `writing.py` makes them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from mres.errors import near_path
from mres.formats.folder import FORMAT, MANIFEST, SAFETENSORS, Checkpoint, CheckpointError
from mres.formats.verifying import verify

__all__ = ["FORMAT", "Checkpoint", "CheckpointError", "committed", "locate", "newest", "newest_sound", "verify"]

# What a new checkpoint is about to replace counts until that is there.
_NAME = re.compile(r"step-(\d{8,})(\.replaced)?")


def step_folder(root: Path, step: int) -> Path:
    """Where the checkpoint of so many steps is, or will be."""
    return root / f"step-{step:08d}"


def aside(folder: Path, what: str) -> Path:
    """A name beside a checkpoint's that is no checkpoint's."""
    return folder.with_name(f"{folder.name}.{what}")


def committed(root: Path) -> list[Path]:
    """The checkpoint folders below `root`, newest first, finished ones only."""
    if not root.is_dir():
        return []
    named = [path for path in root.iterdir() if _NAME.fullmatch(path.name) and (path / MANIFEST).is_file()]
    by_step = {step_of(path): path for path in sorted(named, reverse=True)}  # of two, the one that is not ".replaced"
    return [by_step[step] for step in sorted(by_step, reverse=True)]


def step_of(folder: Path) -> int:
    """The step in a checkpoint folder's name."""
    named = _NAME.fullmatch(folder.name)
    assert named is not None, folder
    return int(named[1])


def newest(root: Path, *, optimizer: bool = True, at_most: int | None = None) -> Iterator[Checkpoint | CheckpointError]:
    """Walks back from the newest checkpoint: errors for the damaged ones, then the first good one, then ends.

    With `at_most`, from the newest of so many steps.

    Raises:
        CheckpointError: with `optimizer`, the first good one holds weights only; an older one would be a step back.
    """
    for folder in committed(root):
        if at_most is not None and step_of(folder) > at_most:
            continue
        try:
            found = verify(folder)
        except CheckpointError as error:
            yield error
            continue
        yield _complete(found) if optimizer else found
        return


def newest_sound(
    root: Path,
    *,
    optimizer: bool = True,
    at_most: int | None = None,
    tell: Callable[[CheckpointError], object] = lambda error: None,
) -> Checkpoint | None:
    """The first good one on the way of `newest`; `tell` hears of the damaged ones before it."""
    for found in newest(root, optimizer=optimizer, at_most=at_most):
        if isinstance(found, Checkpoint):
            return found
        tell(found)
    return None


def locate(path: Path, *, optimizer: bool = True) -> Checkpoint:
    """The checkpoint that a user means by a run's folder, its checkpoints/ folder or a checkpoint's own folder.

    With `optimizer`, one to go on from; without, weights alone will do, such as an exported folder.

    Raises:
        CheckpointError: nothing there, nothing good, or weights only.
    """
    if (path / MANIFEST).is_file():
        found = verify(path)
        return _complete(found) if optimizer else found
    problems: list[CheckpointError] = []
    for root in (path / "checkpoints", path):
        if sound := newest_sound(root, optimizer=optimizer, tell=problems.append):
            return sound
    raise CheckpointError(_nothing_at(path, problems))


def _complete(checkpoint: Checkpoint) -> Checkpoint:
    if checkpoint.weights_only:
        raise CheckpointError(
            f"{checkpoint.folder} holds weights only, without the optimizer's state, so no run can go on from it; "
            f"start a new run from it with checkpoint.init_from={checkpoint.folder} and another run.name"
        )
    return checkpoint


def _nothing_at(path: Path, problems: list[CheckpointError]) -> str:
    if not path.exists():
        return f"no such checkpoint or run: '{path}'{near_path(path)}"
    if (path / SAFETENSORS).is_file():
        return f"'{path}' has no {MANIFEST} to check it with; name '{path / SAFETENSORS}' to take it as it is"
    detail = f" ({'; '.join(map(str, problems))})" if problems else ""
    return (
        f"no finished checkpoint in '{path}'{detail}; name a run's folder, one of its checkpoints/step-*, an exported "
        "folder or a .safetensors file"
    )
