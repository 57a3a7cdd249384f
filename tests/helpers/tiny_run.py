"""Real runs of launch/train.py and launch/evaluate.py on a tiny model, in processes that have their imports behind them.

Every rank is a process of its own, with the environment that a launcher would give it; it is forked off a server that
has imported torch and friends once, because importing them takes longer than everything that these tests do.
"""

import json
import multiprocessing
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import yaml
from commands import PATIENCE_S, ROOT, become

from mres.testing import free_port

TRAIN, EVALUATE = ROOT / "launch" / "train.py", ROOT / "launch" / "evaluate.py"
MODEL = {
    "size": "tiny", "image_size": 32, "vision_width": 32, "vision_depth": 2, "vision_heads": 2, "low_group_tokens": 4,
    "high_group_tokens": 3, "text_width": 32, "text_depth": 1, "text_vocab_size": 1024, "text_length": 14,
    "decoder_width": 32, "decoder_heads": 2, "pixel_width": 8,
}  # fmt: skip
STEPS = 20


def tiny_config(shards: Path) -> dict:
    """22 images in batches of 4: 6 steps an epoch, the last one of 2 images; dropout, augmentation and the trace on."""
    return {
        "data": {
            "train": str(shards), "val": str(shards), "images_per_batch": 4, "expressions_per_image": 3, "workers": 0,
            "augment": {"zoom": [0.8, 1.2], "shift": 0.1, "brightness": 0.2, "contrast": 0.2},
        },
        "model": {**MODEL, "dropout": 0.1},
        "optim": {"lr": 2e-3, "warmup_steps": 4},
        "train": {"steps": STEPS, "log_every": 1, "trace_batches": True, "threads": 1},
        "parallel": {"strategy": "single"},
        "checkpoint": {"every": 1000},
    }  # fmt: skip


def write_config(folder: Path, shards: Path) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_config(shards)), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Raise:
    """A real signal that a rank sends itself when it is about to log `step`: the same moment on every machine.

    With a `phase` (`heartbeat.PHASES`), when it enters that instead.
    """

    step: int
    signal: signal.Signals
    rank: int = 0
    phase: str | None = None


@dataclass(frozen=True)
class Done:
    """What came of a command: exit codes and outputs (stdout and stderr together) in the order of ranks."""

    codes: list[int]
    outputs: list[str]

    @property
    def output(self) -> str:
        return self.outputs[0]


def start(
    script: Path, arguments: list[str], folder: Path, *, world_size: int = 1, raising: Raise | None = None,
    environ: dict[str, str] | None = None,
) -> list[multiprocessing.process.BaseProcess]:  # fmt: skip
    """Starts the script's ranks in `folder`; their outputs go into out-0.txt …"""
    context = multiprocessing.get_context("forkserver")
    port, processes = free_port(), []
    for rank in range(world_size):
        variables = {"PYTHONFAULTHANDLER": "1", "OMP_NUM_THREADS": "1"}
        if world_size > 1:
            variables |= {
                "RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank),
                "LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }  # fmt: skip
        process = context.Process(
            target=_rank, args=(script, arguments, folder, rank, {**variables, **(environ or {})}, raising)
        )
        process.start()
        processes.append(process)
    return processes


def run(script: Path, arguments: list[str], folder: Path, *, timeout_s: float = PATIENCE_S, **options) -> Done:
    """Runs the script's ranks to their end."""
    folder.mkdir(parents=True, exist_ok=True)
    return wait(start(script, arguments, folder, **options), folder, timeout_s)


def wait(processes: list, folder: Path, timeout_s: float = PATIENCE_S) -> Done:
    try:
        for process in processes:
            process.join(timeout_s)
            assert process.exitcode is not None, f"still running after {timeout_s} s: {outputs(folder, len(processes))}"
    finally:
        for process in processes:
            process.kill()
    return Done([p.exitcode for p in processes], outputs(folder, len(processes)))


def outputs(folder: Path, world_size: int) -> list[str]:
    return [(folder / f"out-{rank}.txt").read_text(encoding="utf-8") for rank in range(world_size)]


def _rank(
    script: Path, arguments: list[str], folder: Path, rank: int, environ: dict[str, str], raising: Raise | None
) -> None:
    os.environ.update(environ)
    if raising is not None and raising.rank == rank:
        _raise_at(raising)
    output = folder / f"out-{rank}.txt"
    become([str(script), *arguments], folder, output, output)


def _raise_at(raising: Raise) -> None:
    from mres.train.callback import Callbacks

    enter = Callbacks.phase

    def signalled_in(self: Callbacks, phase: str, step: int) -> None:
        enter(self, phase, step)
        if (phase, step) == (raising.phase, raising.step):
            os.kill(os.getpid(), raising.signal)

    if raising.phase is not None:
        Callbacks.phase = signalled_in  # type: ignore[method-assign]
        return

    log = Callbacks.on_log

    def signalled(self: Callbacks, metrics) -> None:
        if metrics["step"] == raising.step:
            os.kill(os.getpid(), raising.signal)
        log(self, metrics)

    Callbacks.on_log = signalled  # type: ignore[method-assign]


def lines(path: Path) -> list[dict]:
    """A JSONL file, read as strictly as other languages would."""
    return [json.loads(line, parse_constant=_refuse) for line in path.read_text(encoding="utf-8").splitlines()]


def assert_curves_are_metrics(run_dir: Path) -> None:
    """TensorBoard shows every line of metrics.jsonl once, and nothing else."""
    import numpy as np
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    shown = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={SCALARS: 0}).Reload()
    written = lines(run_dir / "metrics.jsonl")
    assert sorted(shown.Tags()[SCALARS]) == sorted({key for line in written for key in line} - {"step"})
    for tag in shown.Tags()[SCALARS]:
        theirs = [(event.step, event.value) for event in shown.Scalars(tag)]
        mine = [(line["step"], float(np.float32(line[tag]))) for line in written if line.get(tag) is not None]
        assert theirs == mine, tag


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def losses(run_dir: Path) -> list[dict]:
    """What of metrics.jsonl must not depend on when and how often a run was interrupted."""
    timeless = ("step", "epoch", "images_seen", "expressions_seen", "loss", "loss_bce", "loss_dice", "grad_norm", "lr")
    return [{key: line[key] for key in timeless} for line in lines(run_dir / "metrics.jsonl")]
