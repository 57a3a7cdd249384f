"""The checkpoints of a run: written aside, published by rename, verified before use, the oldest removed.

    checkpoints/step-00001000/{DCP files, state.json, config.yaml, MANIFEST.json}

Only a folder of exactly that name counts, and only if its files match its MANIFEST.json.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mres.checkpoint.folder import FORMAT, MANIFEST, SAFETENSORS, Checkpoint, CheckpointError, seal, verify
from mres.files import free_bytes, publish_folder

if TYPE_CHECKING:
    from mres.parallel.strategy import Strategy

__all__ = ["FORMAT", "Checkpoint", "CheckpointError", "locate", "newest", "published", "save", "verify"]

_NAME = re.compile(r"step-(\d{8,})")


def step_folder(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def save(root: Path, step: int, strategy: Strategy, state: dict[str, Any], config_yaml: str, *, keep: int) -> Path:
    """Writes and publishes a checkpoint; called by all ranks together, which succeed or fail together.

    `state` has the `step`. The `keep` newest checkpoints stay. Those of later steps, which a run has that was started
    again from an earlier one, are renamed to "….superseded": nothing goes on from them any more.

    Raises:
        CheckpointError: nothing was published (disk full, no permission); older checkpoints stand.
    """
    final = step_folder(root, step)
    part = _aside(final, "incomplete")

    def on_main(action: Callable[[], None]) -> Callable[[], None]:
        return action if strategy.world.is_main else lambda: None

    try:
        _together(strategy, final, on_main(lambda: _fresh(part)))
        _together(strategy, final, lambda: strategy.save_state(part))
        _together(strategy, final, on_main(lambda: _publish(part, final, step, state, config_yaml)))
    except CheckpointError:
        if strategy.world.is_main:
            shutil.rmtree(part, ignore_errors=True)  # a full disk needs the room
        raise
    if strategy.world.is_main:
        _prune(root, keep)
    return final


def _together(strategy: Strategy, final: Path, action: Callable[[], None]) -> None:
    """Runs `action` on every rank; a failure anywhere becomes the same error everywhere instead of a hang."""
    from torch.distributed.checkpoint.api import CheckpointException

    problem = ""
    try:
        action()
    except (Exception, CheckpointException) as error:  # whatever one rank met, all ranks must learn of it
        problem = f"{reason(error)} ({free_bytes(final.parent) / 1e6:,.0f} MB were free there)"
    if strategy.agree([float(bool(problem))])[0]:
        reasons = sorted({p for p in strategy.same_everywhere(problem) if p})
        raise CheckpointError(
            f"checkpoint {final} was not written: {reasons[0][:500]}; checkpoints written before it stand, "
            "run the same command again to go on from them"
        )


def reason(error: BaseException) -> str:
    """Why writing failed, in a line: DCP wraps it into the tracebacks of all ranks, torch into its own terms."""
    failures = getattr(error, "failures", None)
    if failures:
        error = next(iter(failures.values()))[0]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": '{error.filename}'" if error.filename else "")
    text = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
    return f"the disk did not take all of a file ({text})" if "inline_container" in text else text


def _aside(folder: Path, what: str) -> Path:
    return folder.with_name(f"{folder.name}.{what}")


def _fresh(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _publish(part: Path, final: Path, step: int, state: dict[str, Any], config_yaml: str) -> None:
    seal(part, step, state, config_yaml)
    for later in published(final.parent):
        if _step_of(later) > step:
            superseded = _aside(later, "superseded")
            shutil.rmtree(superseded, ignore_errors=True)
            later.rename(superseded)
    publish_folder(part, final)


def published(root: Path) -> list[Path]:
    """The checkpoint folders below `root`, newest first, finished ones only."""
    if not root.is_dir():
        return []
    named = (path for path in root.iterdir() if _NAME.fullmatch(path.name))
    return sorted((path for path in named if (path / MANIFEST).is_file()), key=_step_of, reverse=True)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def newest(root: Path, *, optimizer: bool = True, at_most: int | None = None) -> Iterator[Checkpoint | CheckpointError]:
    """Walks back from the newest checkpoint: errors for the damaged ones, then the first good one, then ends.

    With `at_most`, from the newest of so many steps.

    Raises:
        CheckpointError: with `optimizer`, the first good one holds weights only; an older one would be a step back.
    """
    for folder in published(root):
        if at_most is not None and _step_of(folder) > at_most:
            continue
        try:
            found = verify(folder)
        except CheckpointError as error:
            yield error
            continue
        yield _complete(found) if optimizer else found
        return


def locate(path: Path, *, optimizer: bool = True) -> Checkpoint:
    """The checkpoint that a user means by a run's folder, its checkpoints/ folder or a checkpoint's own folder.

    With `optimizer`, one to go on from; without, weights alone will do, such as an exported folder.

    Raises:
        CheckpointError: nothing there, nothing good, or weights only.
    """
    if (path / MANIFEST).is_file():
        found = verify(path)
        return _complete(found) if optimizer else found
    problems = []
    for root in (path / "checkpoints", path):
        for candidate in newest(root, optimizer=optimizer):
            if isinstance(candidate, Checkpoint):
                return candidate
            problems.append(str(candidate))
    raise CheckpointError(_nothing_at(path, problems))


def _complete(checkpoint: Checkpoint) -> Checkpoint:
    if checkpoint.weights_only:
        raise CheckpointError(
            f"{checkpoint.folder} holds weights only, without the optimizer's state, so no run can go on from it; "
            f"start a new run from it with checkpoint.init_from={checkpoint.folder} and another run.name"
        )
    return checkpoint


def _nothing_at(path: Path, problems: list[str]) -> str:
    if not path.exists():
        return f"no such checkpoint or run: '{path}'"
    if (path / SAFETENSORS).is_file():
        return f"'{path}' has no {MANIFEST} to check it with; name '{path / SAFETENSORS}' to take it as it is"
    detail = f" ({'; '.join(problems)})" if problems else ""
    return (
        f"no finished checkpoint in '{path}'{detail}; name a run's folder, one of its checkpoints/step-*, an exported "
        "folder or a .safetensors file"
    )


def _prune(root: Path, keep: int) -> None:
    """Removes old checkpoints and what killed saves left; what cannot be removed is tried again at the next save."""
    for folder in published(root)[keep:]:
        aside = _aside(folder, "incomplete")
        shutil.rmtree(aside, ignore_errors=True)
        with suppress(OSError):  # renamed first: a folder that is half removed must not look like a checkpoint
            folder.rename(aside)
    for leftover in [*root.glob("step-*.incomplete"), *root.glob("step-*.replaced")]:
        shutil.rmtree(leftover, ignore_errors=True)
