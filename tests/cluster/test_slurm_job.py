"""Jobs submitted to SLURM: the batch text, and what becomes of a task that is preempted, fails or is done.

sbatch, srun and scontrol are stand-ins (fake_slurm/); the batch file, submitit's side of it and the tasks are real.
"""

import json
import pickle
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mres.cluster.job import TrainJob
from mres.cluster.request import JobRequest
from mres.cluster.slurm import batch_text, submit
from mres.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "batch_4x8.sh"
REQUEST = JobRequest("slurm", nodes=2, gpus_per_node=0, tasks_per_node=2, cpus_per_task=1)


def submitted(folder: Path, entry: str, *argv: str, max_requeues: int = 3, request: JobRequest = REQUEST) -> Path:
    """Submits an entry of `tiny_entry`; returns the folder of its logs."""
    job = TrainJob("slurm", argv, max_requeues, entry=f"tiny_entry:{entry}")
    assert submit(job, request, "test", folder / "submitit").job_id == "4242"
    return folder / "submitit"


def log(logs: Path, rank: int) -> str:
    return (logs / f"4242_{rank}_log.out").read_text()


def test_batch_text_is_the_golden_one() -> None:
    request = JobRequest(
        "slurm",
        nodes=4,
        gpus_per_node=8,
        tasks_per_node=8,
        cpus_per_task=10,
        limit_min=2880,
        directives={"partition": "gpu", "account": "grounding", "mem": "480G", "exclude": "n[3,7]", "exclusive": True},
    )
    text = batch_text(request, "mres32m", Path("/shared/runs/mres32m/submitit"))
    assert text.replace(shlex.quote(sys.executable), "PYTHON") == GOLDEN.read_text()


def test_batch_text_without_limit_and_requeue() -> None:
    request = JobRequest("slurm", 1, 1, 1, cpus_per_task=2, max_requeues=0)
    lines = batch_text(request, "one", Path("/runs")).splitlines()
    assert "#SBATCH --no-requeue" in lines
    assert "#SBATCH --requeue" not in lines
    assert not [line for line in lines if "--time" in line]


def test_every_task_gets_its_rank(tmp_path: Path, fake_slurm: Path, run_batch: Callable[..., int]) -> None:
    submitted(tmp_path, "note_rank", str(tmp_path))
    assert run_batch(2, 2) == 0
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(4)]
    assert [(f["RANK"], f["LOCAL_RANK"], f["LOCAL_WORLD_SIZE"]) for f in found] == [
        ("0", "0", "2"),
        ("1", "1", "2"),
        ("2", "0", "2"),
        ("3", "1", "2"),
    ]
    assert {(f["WORLD_SIZE"], f["MASTER_ADDR"], f["MASTER_PORT"]) for f in found} == {("4", "localhost", "14242")}


@pytest.mark.slow
def test_ranks_meet(tmp_path: Path, fake_slurm: Path, run_batch: Callable[..., int]) -> None:
    request = JobRequest("slurm", nodes=2, gpus_per_node=0, tasks_per_node=1, cpus_per_task=1)
    logs = submitted(tmp_path, "all_reduce", request=request)
    assert run_batch(2, 1) == 0
    assert "sum 3 of 2 ranks" in log(logs, 0)


def test_preempted_job_is_requeued_once_and_goes_on(
    tmp_path: Path, fake_slurm: Path, run_batch: Callable[..., int]
) -> None:
    logs = submitted(tmp_path, "save_and_stop", str(tmp_path))
    assert run_batch(2, 2) == 0
    assert (fake_slurm / "scontrol.log").read_text() == "requeue 4242\n"  # by rank 0 alone
    assert len(list(tmp_path.glob("saved*"))) == 4  # and only after all have saved
    assert "preempted: everything is saved, requeueing" in log(logs, 0)
    assert not list(logs.glob("*_result.pkl"))  # nothing that looks like the job's end

    assert run_batch(2, 2, SLURM_RESTART_COUNT="1") == 0
    assert "rank 3 goes on" in log(logs, 3)
    assert (fake_slurm / "scontrol.log").read_text() == "requeue 4242\n"


@pytest.mark.parametrize(
    ("limit_in_s", "reason"), [(100, "the time limit is near"), (3600, "preempted"), (None, "preempted")]
)
def test_reason_is_told_from_the_jobs_end(
    tmp_path: Path, fake_slurm: Path, run_batch: Callable[..., int], limit_in_s: int | None, reason: str
) -> None:
    logs = submitted(tmp_path, "always_preempted")
    end = {} if limit_in_s is None else {"SLURM_JOB_END_TIME": str(int(time.time()) + limit_in_s)}
    assert run_batch(1, 1, **end) == 0
    assert f"{reason}: everything is saved" in log(logs, 0)


def test_requeues_are_counted(tmp_path: Path, fake_slurm: Path, run_batch: Callable[..., int]) -> None:
    logs = submitted(tmp_path, "always_preempted", max_requeues=3)
    assert run_batch(1, 2, SLURM_RESTART_COUNT="3") == 75
    assert "requeued 3 times, not again. The same command goes on" in log(logs, 0)
    assert not (fake_slurm / "scontrol.log").exists()


def test_refused_requeue_is_reported(tmp_path: Path, fake_slurm: Path, run_batch: Callable[..., int]) -> None:
    logs = submitted(tmp_path, "always_preempted")
    assert run_batch(1, 1, FAKE_SLURM_REFUSES="Requested operation is presently disabled") == 75
    assert "'scontrol requeue 4242' failed: slurm_requeue error: Requested operation is presently disabled" in log(
        logs, 0
    )


def test_early_signal_requeues_the_same_job(tmp_path: Path, fake_slurm: Path, run_batch: Callable[..., int]) -> None:
    logs = submitted(tmp_path, "signalled_early")
    before = pickle.loads((logs / "4242_submitted.pkl").read_bytes()).function
    assert run_batch(1, 2) != 0
    assert (fake_slurm / "scontrol.log").read_text() == "requeue 4242\n"
    assert pickle.loads((logs / "4242_submitted.pkl").read_bytes()).function == before


def test_failure_ends_the_other_tasks(tmp_path: Path, fake_slurm: Path, run_batch: Callable[..., int]) -> None:
    submitted(tmp_path, "rank_1_fails", "7")
    assert run_batch(2, 1) == 7  # rank 0, which would wait for ever, is ended
    assert not (fake_slurm / "scontrol.log").exists()


def test_user_error_is_one_line_of_the_log(tmp_path: Path, fake_slurm: Path, run_batch: Callable[..., int]) -> None:
    logs = submitted(tmp_path, "user_error")
    assert run_batch(1, 2) == 2
    assert "error: data.train: no such folder\n" in log(logs, 0)
    assert "Traceback" not in log(logs, 0)


def test_refused_submission(tmp_path: Path, fake_slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SLURM_REFUSES", "invalid partition specified: gpux")
    with pytest.raises(UserError, match=r"sbatch refused the job: .*invalid partition specified: gpux"):
        submitted(tmp_path, "note_rank")


def test_no_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"no sbatch on PATH.*--dry-run.*--cluster local"):
        submitted(tmp_path, "note_rank")
