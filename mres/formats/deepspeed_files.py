"""The files of a DeepSpeed ZeRO checkpoint (0.19, and older ones of the same names), opened without DeepSpeed."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mres.formats.folder import CheckpointError
from mres.formats.open_files import OpenFiles
from mres.formats.torch_archive import TorchArchive
from mres.formats.torch_pickle import TorchUnpickler
from mres.io.files import read_regular
from mres.io.unpickling import Inert

EXTRA = "mres_ema.pt"  # what DeepSpeed has no place for
_MAX_TAG = 1 << 12  # bytes of "latest"
_OPTIM = re.compile(r"(bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_?optim_states\.pt")
# All that DeepSpeed's files name beside torch's own; nothing of it is needed, and none of it is imported.
_INERT = (
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.utils.tensor_fragment.fragment_address",
    "deepspeed.runtime.bf16_optimizer.fragment_address",
    "argparse.Namespace",
)


@dataclass(frozen=True, slots=True)
class Files:
    """One file of optimizer state a rank; of the model's, one a rank (stage 3) or one."""

    folder: Path
    stage: int
    half: bool
    optim: list[TorchArchive]
    model: list[TorchArchive]

    @property
    def world_size(self) -> int:
        return len(self.optim)

    def optimizer(self, rank: int) -> dict[str, Any]:
        """The state of the ZeRO optimizer of a rank."""
        state = self.optim[rank].structure.get("optimizer_state_dict")
        if not isinstance(state, dict):
            raise CheckpointError(f"{self.optim[rank].path} has no optimizer_state_dict: it is no file of ZeRO")
        return state


def tag_folder(folder: Path) -> Path | None:
    """The folder of the files themselves: `folder`, or what its file "latest" names; None where neither is one.

    Raises:
        CheckpointError: "latest" names something outside of the folder, or what is not there; something cannot be read.
    """
    try:
        return _tag_folder(folder)
    except OSError as error:
        raise CheckpointError(f"'{error.filename or folder}' cannot be read: {error.strerror or error}") from None


def _tag_folder(folder: Path) -> Path | None:
    if not folder.is_dir():
        return None
    if any(_OPTIM.fullmatch(path.name) for path in folder.iterdir()):
        return folder
    latest = folder / "latest"
    # A link that leads nowhere is read, and told.
    if not latest.is_file() and (latest.exists() or not latest.is_symlink()):
        return None
    tag = read_regular(latest, _MAX_TAG).decode(errors="replace").strip()
    if not tag or Path(tag).name != tag or tag in (".", "..") or "\0" in tag:
        raise CheckpointError(f"{latest} names {tag!r}, which is no name of a folder beside it")
    try:
        named = (folder / tag).stat()
    except FileNotFoundError:
        raise CheckpointError(
            f"{latest} names {tag!r}, but {folder / tag} is missing; name one of the other folders"
        ) from None
    if not stat.S_ISDIR(named.st_mode):
        raise CheckpointError(f"{latest} names {tag!r}, but {folder / tag} is no folder; name one of the other folders")
    return folder / tag


def open_files(folder: Path) -> Files:
    """Opens every rank's file.

    Raises:
        CheckpointError: one is missing, damaged, refused, or of something else than plain ZeRO.
    """
    paths = _optim_paths(folder)
    files = OpenFiles()
    first = _open(files, paths[0])
    count = _world_size(first)
    if len(paths) != count:
        missing = f"{_of_rank(paths[0], len(paths))} is missing"
        raise CheckpointError(
            f"{folder} has the optimizer state of {len(paths)} ranks, {paths[0].name} says it was written by {count}: "
            f"{missing if len(paths) < count else 'files of two checkpoints lie in it'}"
        )
    optim = [first, *(_open(files, path) for path in paths[1:])]
    stage = _stage(first)
    names = [f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in range(count)]
    model = [_open(files, folder / name) for name in (names if stage == 3 else ["mp_rank_00_model_states.pt"])]
    for file in model:
        if not isinstance(file.structure.get("module"), dict) or not file.structure.get("param_shapes"):
            raise CheckpointError(f"{file.path} has no module or no param_shapes: it was not written under ZeRO")
    return Files(folder, stage, paths[0].name.startswith("bf16_"), optim, model)


def _open(files: OpenFiles, path: Path) -> TorchArchive:
    archive = TorchArchive(files, path, unpickler=partial(TorchUnpickler, inert=_INERT))
    if not isinstance(archive.structure, dict):
        raise CheckpointError(f"{path} is refused: it holds a {type(archive.structure).__name__}, not named values")
    return archive


def open_extra(folder: Path) -> TorchArchive | None:
    """What mres put beside DeepSpeed's files."""
    path = folder / EXTRA
    return _open(OpenFiles(), path) if path.is_file() else None


def _optim_paths(folder: Path) -> list[Path]:
    """By rank; up to the first that is missing."""
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if not (match := _OPTIM.fullmatch(path.name)):
            continue
        if int(match[3]):
            raise CheckpointError(f"{path} is of model parallelism (mp_rank {match[3]}), which is not read")
        if (rank := int(match[2])) in found:
            raise CheckpointError(f"{folder} has two files of rank {rank}, {found[rank].name} and {path.name}: which?")
        found[rank] = path
    if not found:
        raise CheckpointError(f"{folder} has no file …zero_pp_rank_*_optim_states.pt: it is no checkpoint of ZeRO")
    for rank in range(max(found) + 1):
        if rank not in found:
            raise CheckpointError(f"{_of_rank(next(iter(found.values())), rank)} is missing")
    return [found[rank] for rank in range(len(found))]


def _of_rank(path: Path, rank: int) -> Path:
    return path.with_name(re.sub(r"pp_rank_\d+", f"pp_rank_{rank}", path.name))


def _world_size(file: TorchArchive) -> int:
    state = file.structure.get("optimizer_state_dict")
    count = state.get("partition_count") if isinstance(state, dict) else None
    counts: list[Any] = count if isinstance(count, list) else [count]
    if not counts or not all(isinstance(number, int) and number > 0 for number in counts):
        raise CheckpointError(f"{file.path} does not say how many ranks wrote it (partition_count)")
    if len(set(counts)) > 1:
        raise CheckpointError(f"{file.path} has groups on {counts} ranks (mixture of experts), which is not read")
    return int(counts[0])


def _stage(file: TorchArchive) -> int:
    state = file.structure["optimizer_state_dict"]
    if "fp32_flat_groups" in state:
        return 3
    if "single_partition_of_fp32_groups" not in state:
        raise CheckpointError(f"{file.path} has no float32 weights (neither of stage 1 and 2, nor of 3)")
    stage: Any = state.get("zero_stage", 1)  # stage 1 in bfloat16 does not say
    return int(stage.args[0]) if isinstance(stage, Inert) else int(stage)
