"""The demo: scenes → shards → pre-training (FSDP, 2 processes) → fine-tuning → evaluation → report. `make demo` runs it.

Every stage leaves something that is found again, so after Ctrl-C the same command goes on where it was.
"""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from mres.cli import Parser
from mres.config import load_config
from mres.errors import UserError, exit_on_user_error
from mres.evaluate.results import read_results
from mres.evaluate.table import print_tables
from mres.io.output import outlive_readers

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data" / "demo"
# Shard set, images, seed, share of relational expressions. Categories and colours come first, what tells rivals apart
# after them: learned together from the start, neither gets far in minutes (docs/decisions.md). A quarter is relational in
# the held-out scenes.
SETS = (
    ("pretrain", "train", 4000, 1, 0.1),
    ("finetune", "train", 3000, 2, 0.6),
    ("val", "val", 200, 3, 0.25),
)


@dataclass(frozen=True)
class Stage:
    """One step of the demo: what it is called, what shows that it is done, the command that does it."""

    title: str
    done: Callable[[], bool]
    command: Sequence[str]


def stages(processes: int) -> list[Stage]:
    python = sys.executable
    made = [
        Stage(
            f"drawing {images} scenes ({name})",
            _is_drawn(DATA / name, num_images=images, seed=seed, relational_share=share),
            [
                python, "tools/shard.py", "build", "scenes", str(DATA / name), "--num-images", str(images), "--seed", str(seed),
                "--split", split, "--image-size", "128", "--relational-share", str(share), "--workers", str(processes),
            ],
        )
        for name, split, images, seed, share in SETS
    ]  # fmt: skip
    torchrun = [
        python, "-m", "torch.distributed.run", "--nproc-per-node", str(processes),
        "--master-addr", "127.0.0.1", "--master-port", str(_free_port()), "launch/train.py", "--config",
    ]  # fmt: skip
    trained = [
        Stage(title, _is_trained(ROOT / config, overrides), [*torchrun, config, *overrides])
        for title, config, overrides in (
            ("pre-training on objects and parts", "configs/demo_pretrain.yaml", ()),
            ("fine-tuning", "configs/demo.yaml", ("checkpoint.init_from=runs/demo-pretrain",)),
        )
    ]
    evaluate = [python, "launch/evaluate.py", "--config", "configs/demo.yaml", "--checkpoint", "runs/demo"]
    report = [python, "tools/report.py", "runs/demo"]
    return [
        *made,
        *trained,
        Stage("evaluating on held-out scenes", _is_evaluated(ROOT / "configs/demo.yaml"), evaluate),
        Stage("writing the report", lambda: False, report),
    ]


def _is_drawn(folder: Path, **wanted: float) -> Callable[[], bool]:
    def done() -> bool:
        if not (folder / "manifest.json").is_file():
            return False
        source = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["source"]
        if any(source.get(key) != value for key, value in wanted.items()):
            raise UserError(
                f"'{folder}' holds other scenes than this demo's ({source}); remove that folder to draw them again"
            )
        return True

    return done


def _is_trained(config_path: Path, overrides: Sequence[str] = ()) -> Callable[[], bool]:
    config = load_config(config_path, overrides)
    checkpoint = ROOT / config.run_dir / "checkpoints" / f"step-{config.train.steps:08d}"

    def done() -> bool:
        if not (checkpoint / "MANIFEST.json").is_file():
            return False
        if (checkpoint / "config.yaml").read_text(encoding="utf-8") != config.to_yaml():
            raise UserError(
                f"'{ROOT / config.run_dir}' was trained with another {config_path.name} than is there now; "
                "remove that folder (and its results with it) to train again"
            )
        return True

    return done


def _is_evaluated(config_path: Path) -> Callable[[], bool]:
    """Results count as long as they are of the checkpoint that is there."""
    config = load_config(config_path)
    checkpoint = f"step-{config.train.steps:08d}"

    def done() -> bool:
        try:
            results = json.loads((ROOT / config.run_dir / "results.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        manifest = ROOT / config.run_dir / "checkpoints" / checkpoint / "MANIFEST.json"
        written = (ROOT / config.run_dir / "results.json").stat().st_mtime
        return str(results.get("checkpoint", "")).endswith(checkpoint) and written > manifest.stat().st_mtime

    return done


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


def _end_with_demo() -> None:
    """In the command's process: SIGTERM comes when the demo is gone, whatever ended it."""
    if hasattr(_LIBC, "prctl"):  # of Linux
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Relay:
    """While it is entered, what asks the demo to stop goes to the command that runs, once, and the demo waits for it.

    The command has a session of its own. So nothing reaches it twice, whether a terminal, `timeout` or make sends its
    signal to one process or to all: a second one would have torchrun leave its ranks behind. A demo that is killed can
    pass nothing on: the kernel then asks the command to stop.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Relay":
        asks = [signal.SIGINT, signal.SIGTERM, signal.SIGQUIT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
            asks.append(signal.SIGHUP)
        self._before = {number: signal.signal(number, self._note) for number in asks}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def start(self, command: Sequence[str]) -> "subprocess.Popen[bytes]":
        self._process = subprocess.Popen(
            command, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True, preexec_fn=_end_with_demo
        )
        if self.received is not None:
            self._pass_on()
        return self._process

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
            self._pass_on()

    def _pass_on(self) -> None:
        if self._process is not None:  # a closed terminal is no reason not to save
            self._process.send_signal(signal.SIGINT if self.received == signal.SIGINT else signal.SIGTERM)


def run(stage: Stage, number: int, total: int) -> None:
    """Runs a stage unless it is done; asked to stop, it passes that on and waits, since the command saves before it ends.

    Raises:
        KeyboardInterrupt, SystemExit: after a Ctrl-C, or another signal to stop, once the command has ended.
        UserError: the command failed.
    """
    if stage.done():
        print(f"[{number}/{total}] {stage.title}: done before", flush=True)
        return
    print(f"[{number}/{total}] {stage.title}", flush=True)
    started = time.monotonic()
    with Relay() as relay:
        process = relay.start(stage.command)
        assert process.stderr is not None, "asked for"
        for line in process.stderr:
            if relay.received is None:  # from then on it is torchrun's traceback about having been interrupted
                sys.stderr.buffer.write(line)
                sys.stderr.buffer.flush()
        code = process.wait()
    if relay.received is not None:
        print("run make demo again to go on from here", flush=True)
        raise KeyboardInterrupt if relay.received == signal.SIGINT else SystemExit(128 + relay.received)
    if code:
        raise UserError(
            f"the stage '{stage.title}' ended early (exit code {code}); run make demo again to go on from here"
        )
    print(f"      {time.monotonic() - started:.0f} s", flush=True)


@exit_on_user_error
def main() -> int:
    outlive_readers()
    parser = Parser(prog="demo.py", description=__doc__)
    parser.add_argument("--processes", type=int, default=2, help="training processes (default: 2)")
    arguments = parser.parse_args()
    if arguments.processes not in (1, 2, 4):
        raise UserError(
            f"--processes {arguments.processes}: allowed are 1, 2 and 4, which divide the demo's batch of 4 images"
        )
    # Else torchrun would set 1, and warn.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // arguments.processes)))
    started = time.monotonic()
    todo = stages(arguments.processes)
    evaluated_before = todo[-2].done()
    for number, stage in enumerate(todo, start=1):
        run(stage, number, len(todo))
    if evaluated_before:
        print_tables(read_results(ROOT / "runs" / "demo")[0])
    print(_closing(time.monotonic() - started))
    return 0


def _closing(seconds: float) -> str:
    run_dir = ROOT / "runs" / "demo"
    return (
        f"\nthe demo took {seconds / 60:.1f} minutes\n"
        f"  table     {run_dir / 'results.json'}\n"
        f"  report    {run_dir / 'report' / 'index.html'}   (open it in a browser)\n"
        "  try it    .venv/bin/python tools/predict.py --checkpoint runs/demo --image PHOTO --text 'the red car' --out overlay.png"
    )


if __name__ == "__main__":
    sys.exit(main())
