"""The guard of a job: what runs on its second node, for the case that the first one is lost, and the controller with it.

SLURM itself would wait until it takes the node for down (SlurmdTimeout, 300 seconds by default), and lets no job give up the node
of its batch script. So the guard submits the job's script anew, in the place of the job, and cancels that.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mres.cluster import jobs, nodes, slurm
from mres.cluster.slurm_nodes import Node
from mres.errors import UserError
from mres.io.append_log import AppendLog
from mres.supervise.heartbeat import file_system_time, is_silent, read_beats

_LOOK_EVERY_S, _MISSES = 5.0, 3
# SLURM sees from the old job's end that the node does not answer, and does not choose it for the new one.
_BEGIN = "now+15"


def start(run_dir: Path, job: str, known: Sequence[Node]) -> subprocess.Popen[bytes] | None:
    """Starts the guard of a job of several nodes, from the first; it ends with the job."""
    if len(known) < 2:
        return None
    first, second = known[:2]
    srun = ["srun", "--overlap", "--nodes=1", "--ntasks=1", "--cpus-per-task=1", f"--nodelist={second.name}"]
    itself = [sys.executable, "-u", str(Path(__file__)), "--run-dir", str(run_dir), "--job", job]
    of_first = ["--node", first.name, "--host", first.host, "--address", first.address, "--port", str(first.port)]
    # The job's own numbers of nodes, tasks and GPUs are for its tasks.
    environ = {**slurm.outside_of_jobs(os.environ), "SLURM_JOB_ID": os.environ["SLURM_JOB_ID"]}
    return subprocess.Popen([*srun, *itself, *of_first], stdin=subprocess.DEVNULL, env=environ)


def main(argv: Sequence[str]) -> int:
    p = argparse.ArgumentParser(prog="mres.cluster.guard", description=__doc__.partition("\n")[0], allow_abbrev=False)
    p.add_argument("--run-dir", type=Path, required=True, help="the run's folder")
    p.add_argument("--job", required=True, help="the job's number")
    for name in ("node", "host", "address"):
        p.add_argument(f"--{name}", required=True, help="of the job's first node")
    p.add_argument("--port", type=int, required=True, help="of its slurmd")
    options = p.parse_args(argv)
    first = Node(options.node, options.host, options.address, options.port, "")
    started_at = slurm.patiently(lambda: slurm.show_job(options.job)).started_at
    # What the job was submitted with, without what SLURM has added: sbatch hands it on.
    own = slurm.outside_of_jobs(os.environ)
    os.environ.clear()
    os.environ.update(own)
    misses = 0
    while True:
        time.sleep(_LOOK_EVERY_S)
        misses = 0 if nodes.is_reached(first) else misses + 1
        if misses < _MISSES or _ranks_run_on(first, options.run_dir):
            continue
        try:
            job = slurm.show_job(options.job)
        except slurm.SlurmError:  # it is this node that is cut off
            misses = 0
            continue
        if job.state != "RUNNING" or job.started_at != started_at:
            return 0  # SLURM or the controller has seen to it
        if not nodes.is_reached(first):
            _take_over(options.run_dir, options.job, first)
            return 0


def _ranks_run_on(node: Node, run_dir: Path) -> bool:
    """Whether only its slurmd is gone."""
    now = file_system_time(run_dir)
    hosts = {node.name, node.host.partition(".")[0]}
    beats = (beat for beat in read_beats(run_dir).values() if beat.host.partition(".")[0] in hosts)
    return any(beat.runs and not is_silent(beat, now) for beat in beats)


def _take_over(run_dir: Path, job: str, lost: Node) -> None:
    reason = f"lost node {lost.name}, and the batch script with it"
    try:
        with suppress(OSError, UserError):
            nodes.exclude(run_dir, (lost.name,), reason)
        number = _submit_again(run_dir, job)
    except slurm.SlurmError as error:
        _say(run_dir, job, f"{reason}; its job is not submitted again: {error}")
        return
    step = jobs.newest_step(run_dir)
    _say(run_dir, job, f"{reason}: job {number} takes the place of job {job}; the newest checkpoint is of step {step}")
    with suppress(OSError):
        failed = (lost.name,)
        event = jobs.Event(
            number, "requeued", step=step, reason=reason, reached=step, failed_nodes=failed, lost_nodes=failed
        )
        jobs.note(run_dir, event)
    slurm.patiently(lambda: slurm.cancel(job))


def _submit_again(run_dir: Path, job: str) -> str:
    """Returns the new job's number, of an array's member with that of the member. Raises: slurm.SlurmError."""
    array, _, member = job.partition("_")
    avoided = [name for name in (slurm.show_job(job).excluded, *nodes.excluded(run_dir)) if name]
    options = [*([f"--exclude={','.join(avoided)}"] if avoided else []), *([f"--array={member}"] if member else [])]
    with tempfile.TemporaryDirectory() as folder:
        script = f"{folder}/script"
        slurm.ask("scontrol", "write", "batch_script", array, script)
        number = slurm.ask("sbatch", "--parsable", f"--begin={_BEGIN}", *options, script)
    number = number.strip().partition(";")[0]
    return f"{number}_{member}" if member else number


def _say(run_dir: Path, job: str, text: str) -> None:
    """Into the log of rank 0, which the user follows: srun is gone."""
    log = AppendLog(run_dir / jobs.LOGS / f"{job}_0.log", lambda said: None)
    with suppress(OSError):
        log.add(f"mres: {text}\n".encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
