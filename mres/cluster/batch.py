"""The controller of a job: what the batch script runs on the job's first node.

It starts the tasks with srun, lives through the signals that end them, and when they have ended has SLURM queue the job
again, or not (`decide.py`). Nothing but Python's own modules: it runs where the tasks' container is not.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from mres.cluster import jobs, slurm
from mres.cluster.decide import Decision, Facts, decide
from mres.errors import UserError

# After `scontrol requeue` SLURM ends this process; the exit code of one that is not ended says that it should have been.
_REQUEUE_TAKES_S = 60.0
# Left over in a shell that has submitted, they would be taken for the tasks' own.
_OF_A_RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
_REMEDY = "the same command goes on from the newest checkpoint"


def main(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    # The tasks are told to stop, and end; this process has to see it. srun passes on what it gets itself.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGCONT):
        signal.signal(number, _pass_over)
    return Controller(options).run()


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="mres.cluster.batch", description=__doc__.partition("\n")[0], allow_abbrev=False)
    p.add_argument("--run-dir", type=Path, required=True, help="the run's folder")
    p.add_argument("--max-requeues", type=int, default=100, help="how often the job is queued again")
    p.add_argument("--signal-delay", type=int, default=120, help="seconds between the warning and the time limit")
    p.add_argument("--srun-arg", action="append", default=[], help="an option of srun's; may be repeated")
    p.add_argument("command", nargs="+", help="what each task runs, behind --")
    return p


def _pass_over(number: int, frame: FrameType | None) -> None:
    pass


class Controller:
    """One start of the job."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.run_dir: Path = options.run_dir
        self.job = jobs.job_name(os.environ)
        self.restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        self.nodes = os.environ.get("SLURM_JOB_NODELIST", "")

    def run(self) -> int:
        self._note("started")
        step = Step(self._srun())
        exit_code = step.wait()
        facts = self._facts(exit_code)
        decision = decide(facts)
        return self._carry_out(decision, facts)

    def _srun(self) -> list[str]:
        folder = str(self.run_dir.absolute()).replace("%", "%%")
        return [
            "srun",
            "--unbuffered",
            "--kill-on-bad-exit=1",
            "--open-mode=append",
            f"--output={folder}/{jobs.LOGS}/{self.job}_%t.log",
            *self.options.srun_arg,
            *self.options.command,
        ]

    def _facts(self, exit_code: int) -> Facts:
        job = None
        if exit_code:
            try:
                job = slurm.patiently(lambda: slurm.show_job(self.job))
            except slurm.SlurmError as error:
                say(f"warning: the job's state is not known: {error}")
        return Facts(
            exit_code=exit_code,
            now=time.time(),
            state=job.state if job else None,
            preempted_at=job.preempted_at if job else None,
            limit_at=job.limit_at if job else None,
            ends_at=job.ends_at if job else None,
            restarts=self.restart,
            max_requeues=self.options.max_requeues,
            signal_delay_s=self.options.signal_delay,
            cancel_is_asked=self._cancel_is_asked(),
        )

    def _cancel_is_asked(self) -> bool:
        try:
            return jobs.cancel_is_asked(self.run_dir, self.job)
        except (OSError, UserError) as error:
            say(f"warning: {error}")
            return False

    def _carry_out(self, decision: Decision, facts: Facts) -> int:
        """Returns the exit code of the batch script, which SLURM may end before."""
        step = jobs.newest_step(self.run_dir)
        saved = f"; the newest checkpoint is of step {step}" if step else ""
        if decision.action == "end":
            remedy = f". {_REMEDY}" if decision.exit_code else ""
            say(f"{decision.reason}{saved}{remedy}")
            self._note(decision.event, decision)
            return decision.exit_code
        if decision.action == "cancel":
            say(f"{decision.reason}{saved}")
        else:
            say(
                f"{decision.reason}{saved}: the job is queued again ({self.restart + 1} of at most {facts.max_requeues} times)"
            )
        self._note(decision.event, decision)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # from here on nothing is to be waited for
        command = slurm.cancel if decision.action == "cancel" else slurm.requeue
        try:
            slurm.patiently(lambda: command(self.job))
        except slurm.SlurmError as error:
            if not self._is_requeued_already():
                say(f"error: SLURM does not {decision.action} job {self.job}: {error}. {_REMEDY}")
                self._note("failed", Decision("end", "failed", f"not requeued: {error}", decision.exit_code))
            return decision.exit_code
        time.sleep(_REQUEUE_TAKES_S)
        return decision.exit_code

    def _is_requeued_already(self) -> bool:
        """By SLURM itself, once a preempted job's grace time is over."""
        try:
            return slurm.show_job(self.job).state in ("PENDING", "COMPLETING", "REQUEUED", "CONFIGURING")
        except slurm.SlurmError:
            return False

    def _note(self, event: jobs.EventName, decision: Decision | None = None) -> None:
        line = jobs.Event(
            self.job,
            event,
            restart=self.restart,
            nodes=self.nodes,
            step=jobs.newest_step(self.run_dir),
            reason=decision.reason if decision else "",
            excluded=decision.exclude if decision else (),
            exit_code=decision.exit_code if decision else None,
        )
        try:
            jobs.note(self.run_dir, line)
        except OSError as error:  # a full disk is no reason to lose the job
            say(f"warning: {error}")


class Step:
    """srun at work; what it says of its tasks is passed on, and read."""

    def __init__(self, command: list[str]) -> None:
        say(shlex.join(command))
        environ = {name: value for name, value in os.environ.items() if name not in _OF_A_RANK}
        self._process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, env=environ
        )
        self.ends: list[TaskEnd] = []

    def wait(self) -> int:
        """0, or the exit code of the task that ended badly first (128 + N where a signal N ended it): srun's own is the
        largest, and the others are ended for the first one's sake."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if line == "srun: got SIGCONT\n":  # comes with every SIGTERM of SLURM's
                continue
            _print(line)
            if found := TaskEnd.read(line):
                self.ends.append(found)
        code = self._process.wait()
        return code and (self.ends[0].exit_code if self.ends else abs(code))


class TaskEnd:
    """How tasks of one node ended, as srun says it: "srun: error: n1: tasks 2-3: Exited with exit code 7"."""

    _SAID = re.compile(r"srun: error: (\S+): tasks? ([\d,-]+): (.+?)(?: \(core dumped\))?$")

    def __init__(self, node: str, tasks: str, how: str) -> None:
        self.node, self.tasks, self.how = node, tasks, how

    @classmethod
    def read(cls, line: str) -> TaskEnd | None:
        found = cls._SAID.match(line.strip())
        return cls(*found.groups()) if found else None

    @property
    def exit_code(self) -> int:
        """128 + N where a signal N ended it."""
        if found := re.search(r"exit code (\d+)", self.how):
            return int(found[1])
        return next((128 + number for number in signal.Signals if signal.strsignal(number) == self.how), 1)


def say(text: str) -> None:
    _print(f"mres: {text}\n")


def _print(text: str) -> None:
    with suppress(OSError):  # of a full disk: what is decided does not hang on what can be said
        print(text, end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
