"""The controller of a job: what the batch script runs on the job's first node.

It starts the tasks with srun, lives through the signals that end them, and when they have ended has SLURM queue the job
again, or not (`decide.py`). Nothing but Python's own modules: it runs where the tasks' container is not.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TypeVar

from mres.cluster import guard, jobs, nodes, slurm, slurm_nodes
from mres.cluster.decide import PREEMPTED_EXIT, Decision, Facts, decide, requeue
from mres.cluster.restarts import MAX_RESTARTS, Failure
from mres.cluster.step import Step, say
from mres.errors import UserError

# After `scontrol requeue` SLURM ends this process; the exit code of one that is not ended says that it should have been.
_REQUEUE_TAKES_S = 60.0
# Until slurmctld has seen that a node does not answer.
_SEEN_S = 30.0
T = TypeVar("T")
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
    p.add_argument(
        "--max-restarts",
        type=int,
        default=MAX_RESTARTS,
        help="how often failed training is started again without a step gained",
    )
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
        self.known = self._known_nodes()

    def run(self) -> int:
        self._note("started")
        if avoided := nodes.excluded(self.run_dir):
            say(f"this run avoids {', '.join(avoided)}: {self.run_dir / nodes.EXCLUDED}")
        if self.options.max_requeues:
            if avoid := self._avoided(None):  # SLURM could not be told, since the job was ended
                facts = self._facts(PREEMPTED_EXIT, None)
                return self._carry_out(requeue(facts, f"{', '.join(avoid)} failed twice in this run"), facts)
            guard.start(self.run_dir, self.job, self.known)
        past: list[jobs.Event] = self._read(jobs.restarts, [])
        lost_before = past[-1].lost_nodes if past else ()
        while True:
            step = Step(self._srun(), nodes.Watch(self.run_dir, self.known, lost_before))
            exit_code = step.wait()
            facts = self._facts(exit_code, step.failure() if exit_code else None)
            decision = decide(facts)
            if decision.action != "restart":
                return self._carry_out(decision, facts)
            say(f"{decision.reason}{_saved(facts)}: the tasks are started again")
            self._note(decision.event, decision)

    def _known_nodes(self) -> list[slurm_nodes.Node]:
        try:
            return slurm_nodes.show(self.nodes)
        except slurm.SlurmError as error:
            say(f"warning: lost nodes are not noticed: {error}")
            return []

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

    def _facts(self, exit_code: int, failure: Failure | None) -> Facts:
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
            cancel_is_asked=self._read(jobs.cancel_is_asked, False),
            max_restarts=self.options.max_restarts,
            step=jobs.newest_step(self.run_dir),
            past=tuple(self._read(jobs.restarts, [])),
            failure=failure,
            avoid=self._avoided(failure),
        )

    def _read(self, what: Callable[[Path, str], T], otherwise: T) -> T:
        try:
            return what(self.run_dir, self.job)
        except (OSError, UserError) as error:
            say(f"warning: {error}")
            return otherwise

    def _avoided(self, failure: Failure | None) -> tuple[str, ...]:
        """The nodes of this job that have failed twice, this time taken into account."""
        try:
            if failure and (new := nodes.exclude(self.run_dir, failure.failed_nodes, failure.reason)):
                say(f"{', '.join(new)} failed twice: this run avoids it from now on ({self.run_dir / nodes.EXCLUDED})")
        except (OSError, UserError) as error:
            say(f"warning: {error}")
        avoided = set(nodes.excluded(self.run_dir))
        return tuple(node.name for node in self.known if node.name in avoided)

    def _carry_out(self, decision: Decision, facts: Facts) -> int:
        """Returns the exit code of the batch script, which SLURM may end before."""
        said = f"{decision.reason}{_saved(facts)}"
        if decision.action == "end":
            say(f"{said}. {_REMEDY}" if decision.exit_code else said)
        elif decision.action == "cancel":
            say(said)
        else:
            say(f"{said}: the job is queued again ({self.restart + 1} of at most {facts.max_requeues} times)")
        self._note(decision.event, decision)
        if decision.action == "end":
            return decision.exit_code
        try:
            if decision.action == "cancel":
                signal.signal(signal.SIGTERM, signal.SIG_DFL)  # from here on nothing is to be waited for
                slurm.patiently(lambda: slurm.cancel(self.job))
            else:
                self._requeue(decision)
        except slurm.SlurmError as error:
            if not self._is_requeued_already():
                say(f"error: SLURM does not {decision.action} job {self.job}: {error}. {_REMEDY}")
                self._note("failed", Decision("end", "failed", f"not requeued: {error}", decision.exit_code))
            return decision.exit_code
        if not decision.exclude:
            time.sleep(_REQUEUE_TAKES_S)
        return decision.exit_code

    def _requeue(self, decision: Decision) -> None:
        """Raises: slurm.SlurmError."""
        failure = decision.failure
        if failure and failure.lost_nodes:
            names = [node.name for node in self.known]
            try:
                slurm_nodes.give_up(self.job, failure.lost_nodes, names, _SEEN_S)
            except slurm.SlurmError as error:
                say(f"warning: the job starts again when SLURM takes the node(s) for down (SlurmdTimeout): {error}")
        # What is ignored, as opposed to handled, scontrol inherits: SLURM ends it as it ends this process.
        signal.signal(signal.SIGTERM, signal.SIG_IGN if decision.exclude else signal.SIG_DFL)
        slurm.patiently(lambda: slurm.requeue(self.job))
        if decision.exclude:  # SLURM takes that of a job that waits alone, as this one does while it is ended
            try:
                slurm_nodes.exclude(self.job, decision.exclude)
            except slurm.SlurmError as error:
                say(f"warning: {', '.join(decision.exclude)} cannot be excluded: {error}")

    def _is_requeued_already(self) -> bool:
        """By SLURM itself, once a preempted job's grace time is over."""
        try:
            return slurm.show_job(self.job).state in ("PENDING", "COMPLETING", "REQUEUED", "CONFIGURING")
        except slurm.SlurmError:
            return False

    def _note(self, event: jobs.EventName, decision: Decision | None = None) -> None:
        failure = decision.failure if decision else None
        line = jobs.Event(
            self.job,
            event,
            restart=self.restart,
            nodes=self.nodes,
            step=jobs.newest_step(self.run_dir),
            reason=decision.reason if decision else "",
            excluded=decision.exclude if decision else (),
            exit_code=decision.exit_code if decision else None,
            reached=failure.reached if failure else None,
            failed_nodes=failure.failed_nodes if failure else (),
            lost_nodes=failure.lost_nodes if failure else (),
        )
        try:
            jobs.note(self.run_dir, line)
        except OSError as error:  # a full disk is no reason to lose the job
            say(f"warning: {error}")


def _saved(facts: Facts) -> str:
    return f"; the newest checkpoint is of step {facts.step}" if facts.step else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
