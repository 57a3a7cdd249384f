"""A real SLURM of four nodes on this machine (tests/slurm/lab), jobs of training in it, and faults.

Needs root, Debian's packages of SLURM and network namespaces; `missing()` says what is not there.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import tiny_run
import yaml
from commands import ROOT, command

from mres.supervise.heartbeat import Beat, read_beats

SCRIPTS = ROOT / "tests" / "slurm" / "lab"
LABS = Path("/tmp")
MOST_LABS = 100  # the numbers above are for those who bring one up by hand
# Everything that must come by itself; a busy machine of two cores starts four ranks in a minute.
PATIENCE_S = 240.0
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")
SUBMIT = "launch/submit.py"
STEPS = 30  # of the run that `undisturbed` is of
T = TypeVar("T")


def missing() -> str | None:
    """Why no lab can be brought up here; None if one can."""
    if os.getuid() != 0:
        return "a lab of SLURM needs root"
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    tools = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "nsenter", "flock")
    lacking = [tool for tool in tools if shutil.which(tool, path=path) is None]
    if lacking:
        return f"not installed: {', '.join(lacking)} (apt-get install slurmctld slurmd slurm-client munge iproute2)"
    probe = f"mres-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"no network namespaces here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return None


@dataclass(frozen=True)
class Options:
    """Of a lab: whether nodes' names resolve, whether preemption sends the job's own signal before SIGTERM, the seconds
    between a preempted job's warning and its end, and those until SLURM takes a silent node for lost (its default: 300)."""

    names: bool = True
    user_signal: bool = True
    grace_s: int = 60
    slurmd_timeout_s: int = 300
    nodes: int = 4


class Lab:
    """One that is up; `down` removes all of it."""

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options()
        self.number, self.folder = _claimed()
        settings = {
            "NAMES": "yes" if self.options.names else "no",
            "USER_SIGNAL": "yes" if self.options.user_signal else "no",
            "GRACE": str(self.options.grace_s),
            "SLURMD_TIMEOUT": str(self.options.slurmd_timeout_s),
            "NODES": str(self.options.nodes),
        }
        self.settings = {**os.environ, **settings, "NUMBER": str(self.number), "LAB": str(self.folder)}
        self.nodes = [f"m{self.number}n{i}" for i in range(self.options.nodes)]
        # Of the login node, and so of the jobs: tasks find the callbacks of tests/helpers.
        self.environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "SLURM_"))},
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'helpers'}",
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run([SCRIPTS / "up.sh"], env=self.settings, capture_output=True, text=True, check=False)
        if done.returncode:
            self.down()
            raise RuntimeError(f"up.sh failed: {done.stdout}{done.stderr}")

    def down(self) -> None:
        with _uninterrupted():
            subprocess.run([SCRIPTS / "down.sh"], env=self.settings, capture_output=True, check=False)
            shutil.rmtree(self.folder, ignore_errors=True)

    def ask(self, *words: str, check: bool = True, cwd: Path | None = None) -> str:
        """What a command of SLURM (or any other) prints on the login node."""
        done = subprocess.run(
            words, env=self.environ, cwd=cwd, capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def node(self, name: str, action: str, *hide: Path) -> None:
        """`start` [hiding a folder from it], `stop`, `kill` (as by a power failure), `cut`, `heal`."""
        words = [SCRIPTS / "node.sh", name, action, *map(str, hide)]
        done = subprocess.run(words, env=self.settings, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def pids(self, node: str) -> list[int]:
        return [int(pid) for pid in self.ask("ip", "netns", "pids", node).split()]

    def kill_slurmd(self, node: str) -> None:
        """kill -9 of the daemon alone: its tasks run on."""
        os.kill(int((self.folder / "run" / f"slurmd-{node}.pid").read_text()), signal.SIGKILL)

    def submit(self, config: Path, *arguments: str) -> "Job":
        """By launch/submit.py, in the config's folder."""
        done = command(SUBMIT, "--config", config, *arguments, folder=config.parent, environ=self.environ)
        assert done.returncode == 0, done.stdout + done.stderr
        found = re.search(r"job (\d+)", done.stdout)
        assert found is not None, done.stdout
        name = next((a.partition("=")[2] for a in arguments if a.startswith("run.name=")), config.stem)
        return Job(self, found[1], config.parent / "runs" / name)

    def reset(self) -> None:
        """Ends all jobs, and brings every node back."""
        jobs = self.ask("squeue", "-h", "-o", "%A").split()
        if jobs:
            self.ask("scancel", "--signal=KILL", "--full", *jobs, check=False)
            self.ask("scancel", *jobs, check=False)
        for node in self.nodes:
            self.node(node, "heal")
            # What outlives its slurmd is a lost machine's: gone with it.
            if not self._is_alive(node):
                self.node(node, "kill")
                self.node(node, "start")
        back = f"nodename={','.join(self.nodes)}"
        deadline = time.monotonic() + PATIENCE_S
        while True:
            states = self.ask("sinfo", "-h", "-N", "-p", "low", "-o", "%t").split()
            if states == ["idle"] * len(self.nodes) and not self.ask("squeue", "-h"):
                return
            if any(state.startswith(("down", "drain")) for state in states):
                self.ask("scontrol", "update", back, "state=resume", check=False)
            assert time.monotonic() < deadline, f"the lab is not idle again: {states} {self.ask('squeue')}"
            time.sleep(0.3)

    def _is_alive(self, node: str) -> bool:
        with suppress(OSError, ValueError):
            os.kill(int((self.folder / "run" / f"slurmd-{node}.pid").read_text()), 0)
            return True
        return False


@dataclass(frozen=True)
class Job:
    """One of training, in a lab. `run_dir` is the run's folder."""

    lab: Lab
    number: str
    run_dir: Path
    began: float = field(default_factory=time.monotonic)

    @property
    def facts(self) -> dict[str, str]:
        """What scontrol shows."""
        shown = self.lab.ask("scontrol", "show", "job", "-o", self.number, check=False)
        return dict(re.findall(r"(?:^|\s)([\w/:]+)=(\S*)", shown))

    @property
    def state(self) -> str:
        return self.facts.get("JobState", "")

    @property
    def log(self) -> str:
        """Everything that the job has said: the logs of all ranks and of the controller."""
        files = sorted(self.run_dir.glob(f"slurm/{self.number}_*.log"))
        return "".join(path.read_text(errors="replace") for path in files)

    @property
    def steps(self) -> list[int]:
        """Those in metrics.jsonl."""
        path = self.run_dir / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        return [int(step) for step in re.findall(r'"step": (\d+)', text)]

    @property
    def beats(self) -> dict[int, Beat]:
        return read_beats(self.run_dir)

    def wait(self, *states: str, patience_s: float = PATIENCE_S) -> str:
        """Until it is in one of these states; which."""
        return self.until(lambda: self.state if self.state in states else "", "/".join(states), patience_s, states)

    def wait_for_step(self, step: int, patience_s: float = PATIENCE_S) -> None:
        self.until(lambda: max(self.steps, default=0) >= step, f"step {step}", patience_s)

    def until(
        self, condition: Callable[[], T], what: str, patience_s: float = PATIENCE_S, may_end: Sequence[str] = ()
    ) -> T:
        """What `condition` returns as soon as that is true; fails at once where the job has ended otherwise."""
        deadline = time.monotonic() + patience_s
        while not (found := condition()):
            state = self.state
            has_ended = state in ENDED and state not in may_end
            if has_ended and (found := condition()):
                return found
            if has_ended or time.monotonic() > deadline:
                reached = max(self.steps, default=0)
                raise AssertionError(
                    f"waited for {what}, the job is {state} at step {reached}:\n{self.facts}\n{self.log}"
                )
            time.sleep(0.2)
        return found

    def preempt(self, *nodes: str, seconds: int = 1) -> str:
        """Throws it off these nodes (its first by default), by a job of higher priority; that job's number."""
        nodes = nodes or (self.facts["BatchHost"],)
        words = ("sbatch", "--parsable", "-p", "high", "-w", ",".join(nodes), "-N", str(len(nodes)), "--exclusive")
        return self.lab.ask(*words, "-o", "/dev/null", "--wrap", f"sleep {seconds}").strip()

    def kill_rank(self, rank: int) -> Beat:
        """kill -9."""
        beat = self.beats[rank]
        os.kill(beat.pid, signal.SIGKILL)
        return beat

    def losses(self) -> list[dict]:
        return tiny_run.losses(self.run_dir)


def lab_config(folder: Path, shards: Path, *, steps: int = STEPS, every: int = 5, **more: dict) -> Path:
    """A tiny run, DDP over gloo on CPUs, a quarter of a second a step (`lab_callbacks.Paced`), a checkpoint each `every`.

    `more`: whole sections' keys, such as `train={"callbacks": […]}`.
    """
    config = tiny_run.tiny_config(shards)
    config["run"] = {"dir": str(folder / "runs"), "name": "lab"}
    config["train"] |= {"steps": steps, "callbacks": ["lab_callbacks:Paced"], "trace_batches": False}
    config["parallel"] = {"strategy": "ddp"}
    config["checkpoint"] = {"every": every}
    for section, values in more.items():
        config.setdefault(section, {}).update(values)
    path = folder / "lab.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def undisturbed(config: Path, folder: Path, ranks: int, *overrides: str) -> list[dict]:
    """The losses of the same run on this machine, without SLURM and without faults."""
    arguments = ["--config", str(config), f"run.dir={folder}", "run.name=undisturbed", "train.callbacks=[]", *overrides]
    environ = {"PYTHONPATH": str(ROOT / "tests" / "helpers")}
    done = tiny_run.run(tiny_run.TRAIN, arguments, folder, world_size=ranks, environ=environ)
    assert done.codes == [0] * ranks, done.output
    return tiny_run.losses(folder / "undisturbed")


def _claimed() -> tuple[int, Path]:
    """A number and a folder that no other lab has; those of processes that are dead are brought down first."""
    for number in range(MOST_LABS):
        folder = LABS / f"mres-slurm-{number}"
        owner = folder / "owner"
        if owner.exists() and not Path("/proc", owner.read_text() or "0").exists():
            environ = {**os.environ, "NUMBER": str(number), "LAB": str(folder)}
            subprocess.run([SCRIPTS / "down.sh"], env=environ, capture_output=True, check=False)
            shutil.rmtree(folder, ignore_errors=True)
        with suppress(FileExistsError):
            folder.mkdir()
            owner.write_text(str(os.getpid()))
            return number, folder
    raise RuntimeError(f"{MOST_LABS} labs are up: {LABS}/mres-slurm-*")


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """A second Ctrl-C must not leave daemons behind."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
