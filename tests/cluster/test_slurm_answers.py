"""What SLURM's commands print, read; the texts are those of SLURM 22.05.8 with SLURM_TIME_FORMAT=%s."""

import pytest

from mres.cluster.refusals import Partition, read_partitions, refused
from mres.cluster.slurm import Job, SlurmError, ask, plain_words, read_job
from mres.cluster.step import TaskEnd

SHOWN = (
    "JobId=18 ArrayJobId=17 ArrayTaskId=0 JobName=arr UserId=root(0) GroupId=root(0) MCS_label=N/A JobState={state} Reason=None "
    "Dependency=(null) Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0 RunTime=00:00:49 TimeLimit={limit} TimeMin=N/A "
    "SubmitTime=1796096233 EligibleTime=1796096233 StartTime=1796096234 EndTime=1796096834 PreemptEligibleTime=1796096234 "
    "PreemptTime={preempted} ReqNodeList=(null) ExcNodeList={excluded} NodeList=n[2-3] BatchHost=n2\n"
)


def test_a_job() -> None:
    shown = SHOWN.format(state="RUNNING", limit="1-00:10:00", preempted="None", excluded="(null)")
    job = read_job(shown)
    assert job == Job("RUNNING", 1796096234.0, 1796096834.0, 87000.0, None, "n[2-3]", "")
    assert job.limit_at == 1796096234 + 87000
    preempted = read_job(SHOWN.format(state="SIGNALING", limit="UNLIMITED", preempted="1796096300", excluded="n[0,4]"))
    assert (preempted.preempted_at, preempted.limit_at, preempted.excluded) == (1796096300.0, None, "n[0,4]")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            "sbatch: error: invalid partition specified: gpux\n"
            "sbatch: error: Batch job submission failed: Invalid partition name specified\n",
            "invalid partition specified: gpux; Batch job submission failed: Invalid partition name specified",
        ),
        ("slurm_requeue error: Invalid job id specified\n", "Invalid job id specified"),
        ("sbatch: error: once\nsbatch: error: once\n\n", "once"),
    ],
)
def test_words_are_said_once(said: str, words: str) -> None:
    assert plain_words(said) == words


@pytest.mark.parametrize(
    ("line", "exit_code"),
    [
        ("srun: error: n1: tasks 2-3,7: Exited with exit code 7", 7),
        ("srun: error: n0: task 0: User defined signal 2", 140),
        ("srun: error: node-17: task 12: Killed", 137),
        ("srun: error: n0: task 0: Segmentation fault (core dumped)", 139),
        ("srun: error: n0: task 0: Out Of Memory", 137),
    ],
)
def test_how_a_task_ended(line: str, exit_code: int) -> None:
    end = TaskEnd.read(line + "\n")
    assert end is not None
    assert end.exit_code == exit_code


def test_what_is_no_end_of_a_task() -> None:
    for line in ("srun: Force Terminated StepId=2.0", "srun: error: Unable to create step", "task 0: Killed"):
        assert TaskEnd.read(line) is None


def test_a_command_that_is_not_there() -> None:
    with pytest.raises(SlurmError, match="no-such-command"):
        ask("no-such-command")


def test_partitions() -> None:
    shown = (
        "PartitionName=low AllowGroups=ALL Default=YES MaxNodes=UNLIMITED MaxTime=UNLIMITED Nodes=n[0-3] TotalCPUs=64 TotalNodes=4\n"
        "PartitionName=gpu AllowGroups=ALL Default=NO MaxNodes=2 MaxTime=2-00:00:00 Nodes=n[0-9] TotalCPUs=64 TotalNodes=10\n"
    )
    assert read_partitions(shown) == {
        "low": Partition("low", True, 4, None),
        "gpu": Partition("gpu", False, 2, 2880),
    }


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ("Invalid account or account/partition combination specified", "--account"),
        ("Invalid qos specification", "--qos"),
        ("CPU count per node can not be satisfied; Requested node configuration is not available", "--cpus-per-task"),
        ("Invalid feature specification", "--constraint"),
        ("unrecognized option '--foo'", "--sbatch"),
        ("Requested reservation is invalid", "--sbatch reservation"),
    ],
)
def test_a_refusal_names_the_option(words: str, option: str) -> None:
    assert words in str(refused(words))
    assert option in str(refused(words))
