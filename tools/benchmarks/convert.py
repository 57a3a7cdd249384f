"""Bench of conversions: seconds and peak memory of each, beside `cp` of the same files and what other libraries offer.

Every conversion is a process of its own, from its start to its end, its imports included; so are the references. mres's
also check the source's hashes, bring the outcome to the disk and compare it with the source; no reference does.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.claim import claim
from mres.convert.convert import MEMORY_BYTES
from mres.errors import UserError
from mres.formats.folder import seal
from mres.io.files import free_bytes, fsync

_TOOL = Path(__file__).parents[2] / "tools" / "convert.py"
_SMALL_BYTES, _RANKS = 2_000_000, 4
_TORCH_SAVE = (
    "from torch.distributed.checkpoint.format_utils import dcp_to_torch_save as f; import sys; f(*sys.argv[1:])"
)
_FP32 = (
    "from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_fp32_state_dict as f; import sys; "
    "f(*sys.argv[1:], safe_serialization=True)"
)


def convert(arguments: argparse.Namespace) -> dict[str, Any]:
    """Makes a checkpoint of `mb` megabytes below the temporary folder (TMPDIR) and converts it from form to form.

    Raises:
        UserError: there is no room for it.
    """
    with tempfile.TemporaryDirectory(prefix="bench-convert-") as name:
        root = Path(name)
        if free_bytes(root) < 6e6 * arguments.mb:
            raise UserError(f"bench convert takes six times --mb {arguments.mb} of disk in '{root.parent}'; set TMPDIR")
        # Not in this process: what it had once would count as the peak of whatever it starts.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as apart:
            largest = apart.submit(_make, root / "dcp", arguments.mb * 10**6).result()
        return _report(arguments.mb, largest, _measure(root))


def _make(folder: Path, num_bytes: int) -> int:
    """A sealed checkpoint: weights and moments in many tensors, a fifth of each in one; returns the largest's bytes."""
    import torch
    import torch.distributed.checkpoint as dcp

    of_each = num_bytes // 3
    sizes = {"big": of_each // 5} | {f"layer.{n}": _SMALL_BYTES for n in range(of_each * 4 // 5 // _SMALL_BYTES)}
    state: dict[str, torch.Tensor] = {}
    for name, size in sizes.items():
        for key in (f"model.{name}", f"optim.{name}.exp_avg", f"optim.{name}.exp_avg_sq"):
            state[key] = torch.rand(size // 4)
        state[f"optim.{name}.step"] = torch.tensor(1.0)
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    groups = [{"names": list(sizes), "weight_decay": 0.0, "lr_scale": 1.0}]
    seal(folder, 1, {"step": 1, "model": {}, "groups": groups}, "model: {}\n")
    return sizes["big"]


def _measure(root: Path) -> dict[str, dict[str, float]]:
    """By conversion: seconds, peak MB, and seconds of `cp` of its source."""
    dcp, zero, exported = root / "dcp", root / "zero", root / "exported"

    def by_mres(source: Path, out: Path, *options: str) -> dict[str, float]:
        found = _run(sys.executable, str(_TOOL), str(source), str(out), *options)
        return found | {"cp": _copy(source, root / "copy")}

    def by_other(code: str, source: Path, out: Path) -> dict[str, float]:
        found = _run(sys.executable, "-c", code, str(source), str(out))
        shutil.rmtree(out) if out.is_dir() else out.unlink()
        return found

    return {
        "dcp to dcp": by_mres(dcp, root / "again", "--to", "dcp"),
        "dcp_to_torch_save": by_other(_TORCH_SAVE, dcp, root / "all.pt"),
        "dcp to zero3": by_mres(dcp, zero, "--to", "zero3", "--world-size", str(_RANKS)),
        "zero3 to safetensors": by_mres(zero, exported, "--to", "safetensors"),
        "zero_to_fp32": by_other(_FP32, zero, root / "fp32"),
        "zero3 to dcp": by_mres(zero, root / "from-zero", "--to", "dcp"),
        "safetensors to dcp": by_mres(exported, root / "from-exported", "--to", "dcp"),
    }


def _run(*command: str) -> dict[str, float]:
    """Seconds and peak resident MB of a process.

    Raises:
        UserError: it failed.
    """
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise UserError(f"{' '.join(command)} failed:\n{output.read().decode()[-2000:]}")
    return {"s": seconds, "MB": usage.ru_maxrss * 1024 / 1e6}


def _copy(source: Path, out: Path) -> float:
    """Seconds until `cp` of the source's files is on the disk."""
    started = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(out)], check=True)
    for path in out.rglob("*"):
        fsync(path)
    seconds = time.perf_counter() - started
    shutil.rmtree(out)
    return seconds


def _report(mb: int, largest: int, found: dict[str, dict[str, float]]) -> dict[str, Any]:
    limit = (MEMORY_BYTES + 2 * largest) / 1e6
    ours = {name: figures for name, figures in found.items() if "cp" in figures}
    pairs = {"dcp to dcp": "dcp_to_torch_save", "zero3 to safetensors": "zero_to_fp32"}
    memory = max(figures["MB"] for figures in ours.values())
    return {
        "bench": "convert",
        "what": f"a checkpoint of {mb:,} MB, its largest tensor {largest / 1e6:,.0f} MB; from process start to its end",
        "seconds": {name: figures["s"] for name, figures in found.items()},
        "cp of the source and fsync, s": {name: figures["cp"] for name, figures in ours.items()},
        "conversion / cp": {name: figures["s"] / figures["cp"] for name, figures in ours.items()},
        "peak memory, MB": {name: figures["MB"] for name, figures in found.items()} | {"limit": limit},
        "claims": {
            "peak memory / (200 MB + 2 × the largest tensor)": claim(memory / limit, "<=", 1),
            **{f"{one} / {other}": claim(found[one]["s"] / found[other]["s"], "<=", 1) for one, other in pairs.items()},
        },
    }
