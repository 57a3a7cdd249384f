"""torch's flight recorder, on by default with NCCL: the last collectives of every rank, dumped when one times out."""

import os
from pathlib import Path

import torch

_EVENTS = "2000"


def enable_flight_recorder(run_dir: Path) -> None:
    """Before the process group opens; what the user has set in the environment stays. Without a GPU nothing happens.

    A dump is `runs/<name>/flight/rank_<rank>`, read by `torchfrtrace runs/<name>/flight`.
    """
    if not torch.cuda.is_available():
        return
    # torch 2.9 knows the old names too, and warns of them.
    renamed = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 9)
    for old, new, value in (
        ("TORCH_NCCL_TRACE_BUFFER_SIZE", "TORCH_FR_BUFFER_SIZE", _EVENTS),
        ("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", "TORCH_FR_DUMP_TEMP_FILE", str(run_dir.absolute() / "flight" / "rank_")),
        ("TORCH_NCCL_DUMP_ON_TIMEOUT", "TORCH_NCCL_DUMP_ON_TIMEOUT", "1"),
    ):
        if old not in os.environ and new not in os.environ:
            os.environ[new if renamed else old] = value


def make_folder(run_dir: Path) -> None:
    """Made with the run's other files: NCCL makes no folders, and a dump without one would be lost."""
    if torch.cuda.is_available():
        (run_dir / "flight").mkdir(exist_ok=True)
