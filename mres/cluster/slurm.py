"""SLURM's commands, asked and read: the one place that runs them. Nothing but Python's own modules: nodes run it, too."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from mres.errors import UserError

_TIMEOUT_S = 60.0
# slurmctld is restarted, or busy: what a decision depends on is asked again for so long.
_PATIENCE_S, _AGAIN_S = 180.0, 5.0
# What is said when it cannot be reached, and is no answer.
_UNREACHABLE = (
    "unable to contact",
    "socket timed out",
    "connection refused",
    "try again",
    "communication failure",
    "zero bytes",
)


_NUMBER, _PATH = 64, 4096  # widths of columns


class SlurmError(Exception):
    """A command of SLURM failed; SLURM's own words."""


@dataclass(frozen=True)
class Job:
    """What scontrol shows of a job; times are seconds since 1970, None where SLURM has none."""

    state: str
    started_at: float | None
    ends_at: float | None
    limit_s: float | None
    preempted_at: float | None
    nodes: str
    excluded: str

    @property
    def limit_at(self) -> float | None:
        """When its time is up; `ends_at` is that, too, but of a job that has ended or does when it began to."""
        return None if self.started_at is None or self.limit_s is None else self.started_at + self.limit_s


def ask(*command: str, folder: str | None = None) -> str:
    """What a command prints, called in a folder.

    Raises:
        SlurmError: it is not there, failed or did not answer.
    """
    # The times of all clocks alike, whatever the user's taste.
    environ = {**os.environ, "SLURM_TIME_FORMAT": "%s"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, env=environ, cwd=folder
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise SlurmError(f"'{' '.join(command)}': {error}") from None
    if done.returncode:
        raise SlurmError(plain_words(done.stderr or done.stdout) or f"exit code {done.returncode}")
    return done.stdout


def plain_words(said: str) -> str:
    """SLURM's words on one line, each once, without the names of its commands."""
    lines = [re.sub(r"^(?:\w+: )?(?:(?:\w+ )?error|fatal): |^sbatch: ", "", line.strip()) for line in said.splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line and not line.startswith('Try "')))


def show_job(job: str) -> Job:
    """Raises: SlurmError: it is not known, or SLURM does not answer."""
    return read_job(ask("scontrol", "show", "job", "--oneliner", job))


def read_job(shown: str) -> Job:
    """From what `scontrol show job --oneliner` prints of one job."""

    def value(key: str) -> str:
        found = re.search(rf"(?:^|\s){key}=(\S*)", shown)
        return found[1] if found and found[1] not in ("(null)", "None", "Unknown") else ""

    def moment(key: str) -> float | None:
        return float(value(key)) if re.fullmatch(r"\d+", value(key)) else None

    return Job(
        state=value("JobState"),
        started_at=moment("StartTime"),
        ends_at=moment("EndTime"),
        limit_s=seconds(value("TimeLimit")),
        preempted_at=moment("PreemptTime"),
        nodes=value("NodeList"),
        excluded=value("ExcNodeList"),
    )


def outputs_of_jobs() -> dict[str, str]:
    """This user's jobs that wait, run or end just now, each member of an array by itself; and where each one writes to.

    Raises:
        SlurmError: SLURM does not answer.
    """
    rows = ask("squeue", "--me", "--noheader", "--array", f"--Format=JobArrayID:{_NUMBER},STDOUT:{_PATH}").splitlines()
    return {row[:_NUMBER].strip(): row[_NUMBER:].strip() for row in rows}


def requeue(job: str) -> None:
    """Has it started again. Raises: SlurmError."""
    ask("scontrol", "requeue", job)


def cancel(job: str) -> None:
    """Ends it for good. Raises: SlurmError."""
    ask("scancel", job)


def signal(job: str, name: str) -> None:
    """Sends one to the job's tasks. Raises: SlurmError."""
    ask("scancel", f"--signal={name}", job)


@dataclass(frozen=True)
class Queued:
    """What the queue says of a job; `reason` is why it waits."""

    state: str
    reason: str = ""
    nodes: str = ""

    @property
    def is_live(self) -> bool:
        """Whether it runs, or will."""
        return self.state not in _OVER


_OVER = (
    *(
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
    ),
    "TIMEOUT",
)


def queue(jobs: Iterable[str]) -> dict[str, Queued]:
    """Those of `jobs` that SLURM knows, members of arrays ("12_3") among them; of old ones, what its accounting says.

    Raises:
        SlurmError: it does not answer.
    """
    wanted = {*jobs}
    numbers = sorted({job.partition("_")[0] for job in wanted})
    try:
        lines = _squeue(numbers) if numbers else []
    except SlurmError as error:
        if "invalid job id" not in str(error).lower():
            raise
        # One that it has forgotten is an answer; beside others it may keep it from telling of those.
        if len(numbers) > 1:
            return {job: its for number in numbers for job, its in queue(_of(number, wanted)).items()}
        lines = []
    found = {job: Queued(state, reason, nodes) for job, state, reason, nodes in lines if job in wanted}
    return {**_accounted(wanted - found.keys()), **found}


def _of(number: str, jobs: Iterable[str]) -> list[str]:
    return [job for job in jobs if job.partition("_")[0] == number]


def _squeue(numbers: Iterable[str]) -> list[list[str]]:
    options = ("--noheader", "--array", "--states=all", "--format=%i|%T|%r|%N")
    return [line.split("|", 3) for line in ask("squeue", *options, f"--jobs={','.join(numbers)}").splitlines()]


def _accounted(jobs: Iterable[str]) -> dict[str, Queued]:
    """What sacct remembers; nothing where there is no accounting."""
    wanted = sorted(jobs)
    if not wanted or shutil.which("sacct") is None:
        return {}
    with suppress(SlurmError):
        told = ask(
            "sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State", f"--jobs={','.join(wanted)}"
        )
        pairs = (line.split("|", 1) for line in told.splitlines())
        return {job: Queued(state.split()[0]) for job, state in pairs if job in wanted and state}  # "CANCELLED by 0"
    return {}


T = TypeVar("T")


def patiently(question: Callable[[], T], patience_s: float = _PATIENCE_S) -> T:
    """Asks again as long as slurmctld cannot be reached. Raises: SlurmError."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return question()
        except SlurmError as error:
            if not any(words in str(error).lower() for words in _UNREACHABLE) or time.monotonic() > deadline:
                raise
        time.sleep(_AGAIN_S)


def check_commands() -> None:
    """Raises: UserError: this machine has no sbatch."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "there is no sbatch on PATH: submit from a login node of the cluster, write the batch script with --script FILE,"
            " or train on this machine with --cluster local"
        )


def outside_of_jobs(environ: Mapping[str, str]) -> dict[str, str]:
    """Without what a job's own shell has: sbatch would hand it on, and the new job take it for its own."""
    if "SLURM_JOB_ID" not in environ:
        return dict(environ)
    return {name: value for name, value in environ.items() if not name.startswith("SLURM_") or name == "SLURM_CONF"}


def submit(script: str, environ: Mapping[str, str]) -> subprocess.Popen[str]:
    """Gives the script to sbatch, in the environment that the job is to have; a process whose first line of output is the job's number.

    It goes on as long as sbatch does, with `--sbatch wait` to the job's end.
    """
    pipe = subprocess.PIPE
    process = subprocess.Popen(["sbatch", "--parsable"], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environ)
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin:  # refused before it was read
        process.stdin.write(script)
    process.stdin = None  # which `communicate` would flush
    return process


def job_number(sbatch: subprocess.Popen[str]) -> str:
    """The number of the job that was submitted.

    Raises:
        SlurmError: sbatch refuses it; its words.
    """
    assert sbatch.stdout is not None
    assert sbatch.stderr is not None
    number = sbatch.stdout.readline().strip().partition(";")[0]  # "12;cluster" of several clusters
    if number.isdigit():
        return number
    said = plain_words(sbatch.stderr.read())
    sbatch.wait()
    raise SlurmError(said)


def seconds(limit: str) -> float | None:
    """Of a time limit as SLURM prints it, D-HH:MM:SS; None where there is none."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", limit)
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
