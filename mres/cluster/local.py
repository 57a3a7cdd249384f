"""A job on this machine through submitit: several processes (`run_local`), or one in this process (`run_debug`)."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import psutil  # type: ignore[import-untyped]
import submitit
from submitit.core.utils import pickle_load

from mres.cluster.follow import Tail
from mres.cluster.job import TrainJob
from mres.cluster.request import NO_LIMIT_MIN, JobRequest
from mres.supervise.stop_request import INTERRUPTED_EXIT, PREEMPTED_EXIT

_POLL_S = 0.2


def run_debug(job: TrainJob, folder: Path) -> int:
    """Runs the job in this process (a crash opens the debugger); returns its exit code."""
    executor = submitit.DebugExecutor(folder)
    return int(executor.submit(job).result())


def run_local(job: TrainJob, request: JobRequest, folder: Path, grace_s: float = 20.0) -> int:
    """Runs the job's tasks as processes, shows rank 0's log meanwhile, and returns the first exit code that is not 0.

    Ctrl-C (or SIGTERM) is passed on to the tasks, which save and end; a second one ends them at once. A closed
    terminal leaves them running, and this process with them: without it (kill -9) they save and end. Where a rank has
    failed, the others get `grace_s` to fail as well.
    """
    executor = submitit.LocalExecutor(folder, max_num_timeout=request.max_requeues)
    executor.update_parameters(
        tasks_per_node=request.tasks_per_node,
        gpus_per_node=request.gpus_per_node,
        visible_gpus=_visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES")),
        timeout_min=request.limit_min or NO_LIMIT_MIN,
        signal_delay_s=request.signal_delay_s,
        stderr_to_stdout=True,
    )
    # What is started meanwhile ignores Ctrl-C and a closed terminal: submitit's controller would kill the tasks after one
    # second, in the middle of their save.
    with _signals_handled(signal.SIG_IGN, signal.SIGHUP):
        with _signals_handled(signal.SIG_IGN, signal.SIGINT):
            submitted = executor.submit(job)
        return _LocalRun(submitted, request.tasks_per_node, grace_s).run()


def _visible_gpus(cuda_visible_devices: str | None) -> tuple[int, ...]:
    """The GPUs to hand out where the user has chosen some by number; otherwise submitit counts from 0."""
    chosen = (cuda_visible_devices or "").split(",")
    return tuple(int(gpu) for gpu in chosen) if all(gpu.strip().isdigit() for gpu in chosen) else ()


@contextmanager
def _signals_handled(
    handler: Callable[[int, FrameType | None], None] | signal.Handlers, *numbers: int
) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class _LocalRun:
    """Follows a local job to its end."""

    def __init__(self, job: Any, num_tasks: int, grace_s: float) -> None:
        self.job, self.grace_s = job, grace_s
        self.controller = psutil.Process(int(job.job_id))
        self.results = [Path(job.task(rank).paths.result_pickle) for rank in range(num_tasks)]
        self.logs = [Path(job.task(rank).paths.stdout) for rank in range(num_tasks)]
        self._stops = 0
        self._failed_at: float | None = None
        for path in self.results:
            path.unlink(missing_ok=True)  # a local job's id is a process id, which comes again one day

    def run(self) -> int:
        log = Tail(self.logs[0])
        with _signals_handled(self._note_stop, signal.SIGINT, signal.SIGTERM):
            try:
                return self._follow(log)
            finally:
                log.show()

    def _follow(self, log: Tail) -> int:
        while not self.job.done():
            tasks = self._tasks()
            if self._stops:
                self._stop(tasks, log)
                return INTERRUPTED_EXIT
            self._end_stragglers(tasks)
            log.show()
            time.sleep(_POLL_S)
        return self._exit_code()

    def _note_stop(self, number: int, frame: FrameType | None) -> None:
        self._stops += 1

    def _tasks(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return list(self.controller.children())
        return []

    def _stop(self, tasks: list[psutil.Process], log: Tail) -> None:
        """Lets the tasks save and end; the controller goes first, since it would start them again."""
        seen = self._stops
        print("stopping: the tasks save what they have (Ctrl-C again: at once)", file=sys.stderr, flush=True)
        _send([self.controller], signal.SIGKILL)
        _send(tasks, signal.SIGINT)
        while tasks:
            _, tasks = psutil.wait_procs(tasks, timeout=_POLL_S)
            log.show()
            if self._stops > seen:
                _send(tasks, signal.SIGKILL)

    def _end_stragglers(self, tasks: list[psutil.Process]) -> None:
        """Ends the ranks that hang in a collective whose partner is gone; submitit would wait for them for ever."""
        done_well = sum(_exit_code_in(path) == 0 for path in self.results)
        if not tasks or len(tasks) + done_well >= len(self.results):
            self._failed_at = None
            return
        self._failed_at = self._failed_at or time.monotonic()
        if time.monotonic() - self._failed_at > self.grace_s:
            print(f"a rank has failed and {len(tasks)} still run: ending them", file=sys.stderr, flush=True)
            _send(tasks, signal.SIGKILL)

    def _exit_code(self) -> int:
        codes = [_exit_code_in(path) for path in self.results]
        for rank, code in enumerate(codes):
            if code not in (0, PREEMPTED_EXIT):
                what = "was killed, or restarted too often" if code is None else f"ended with exit code {code}"
                print(f"rank {rank} {what}; its log: {self.logs[rank]}", file=sys.stderr, flush=True)
        return next((code for code in codes if code), 1 if None in codes else 0)


def _exit_code_in(result: Path) -> int | None:
    """What a task has returned: None where it has not, 1 for an exception."""
    if not result.exists():
        return None
    outcome, value = pickle_load(result)
    return int(value) if outcome == "success" else 1


def _send(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
