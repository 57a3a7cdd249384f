"""What a task sees of SLURM or submitit, and the rank that follows."""

import os
from pathlib import Path

import pytest

from mres.errors import UserError
from mres.supervise.slurm_env import (
    MASTER_PORTS,
    first_host,
    free_port,
    is_slurm_task,
    ports_of_meeting,
    step_ports,
    task_environment,
)

# Task 5 of a job of 2 nodes x 4 tasks, as srun sets it.
SLURM = {
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "localhost,n9",
    "SLURM_JOB_NODELIST": "localhost,n9",
}
EXPECTED = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": str(10_000 + 123456 % 20_000),
    "MRES_MEETING": "123456.0.0",
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"SLURM_STEP_TASKS_PER_NODE": "7,1"}, {"LOCAL_WORLD_SIZE": "1"}),
        ({"SLURM_STEP_NUM_TASKS": "6"}, {"WORLD_SIZE": "6"}),  # a step smaller than its job
        ({"SLURM_STEP_NODELIST": "127.0.0.1"}, {"MASTER_ADDR": "127.0.0.1"}),
        ({"RANK": "99", "WORLD_SIZE": "100"}, {}),  # left over in the shell that submitted
        ({"SLURM_JOB_ID": "20000"}, {"MASTER_PORT": "10000", "MRES_MEETING": "20000.0.0"}),
        ({"SLURM_JOB_ID": "19999"}, {"MASTER_PORT": "29999", "MRES_MEETING": "19999.0.0"}),
        ({"SLURM_STEP_ID": "1"}, {"MASTER_PORT": "14465", "MRES_MEETING": "123456.1.0"}),  # beside another in the job
        ({"SLURM_RESTART_COUNT": "3"}, {"MRES_MEETING": "123456.0.3"}),
        ({"MASTER_PORT": "4711", "MASTER_ADDR": "ib-n1"}, {"MASTER_PORT": "4711", "MASTER_ADDR": "ib-n1"}),
    ],
)
def test_slurm_task(changes: dict[str, str], expected: dict[str, str]) -> None:
    assert task_environment({**SLURM, **changes}) == {**EXPECTED, **expected}


def test_older_slurm_without_step_variables() -> None:
    environ = {key: value for key, value in SLURM.items() if not key.startswith("SLURM_STEP_")}
    environ |= {"SLURM_STEP_ID": "0", "SLURM_TASKS_PER_NODE": "4(x2)"}
    assert task_environment(environ) == EXPECTED


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"SLURM_JOB_ID": ""}, "SLURM_JOB_ID is not set"),
        ({"SLURM_LOCALID": "one"}, "SLURM_LOCALID is 'one', expected a whole number"),
        ({"SLURM_STEP_TASKS_PER_NODE": "4*2"}, "SLURM_STEP_TASKS_PER_NODE is '4*2'"),
        ({"SLURM_STEP_TASKS_PER_NODE": "8"}, "SLURM_NODEID=1"),
        ({"SLURM_STEP_NODELIST": "n[1-x]"}, "n[1-x]"),
        ({"SLURM_STEP_NODELIST": "no-such-host.invalid"}, "'no-such-host.invalid' does not resolve"),
    ],
)
def test_unreadable_slurm_variables_are_named(changes: dict[str, str], words: str) -> None:
    with pytest.raises(UserError) as error:
        task_environment({**SLURM, **changes})
    assert words in str(error.value)


def test_name_that_does_not_resolve_takes_slurms_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\necho "NodeName=$3 Arch=x86_64"\necho "   NodeAddr=10.77.0.11 NodeHostName=$3"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    found = task_environment({**SLURM, "SLURM_STEP_NODELIST": "no-such-host.invalid"})
    assert found["MASTER_ADDR"] == "10.77.0.11"


@pytest.mark.parametrize(
    ("nodelist", "first"),
    [
        ("n1", "n1"),
        ("n[04-07,9],login", "n04"),
        ("gpu-a[3,1]", "gpu-a3"),
        ("a,b[1-2]", "a"),
        ("r[1-2]n[5-6]-ib.local", "r1n5-ib.local"),
    ],
)
def test_first_host(nodelist: str, first: str) -> None:
    assert first_host(nodelist) == first


def test_local_task() -> None:
    environ = {"SUBMITIT_LOCAL_GLOBALID": "1", "SUBMITIT_LOCAL_NTASKS": "2", **SLURM}
    found = task_environment(environ, local_port=12345)  # also inside an allocation: the local tasks are the job
    assert found == {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "12345",
    }


def test_neither_is_a_world_of_one() -> None:
    found = task_environment({"PATH": "/bin"})
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_WORLD_SIZE"]) == ("0", "1", "1")


def test_a_batch_script_is_no_task() -> None:
    batch = {key: value for key, value in SLURM.items() if not key.startswith("SLURM_STEP_")}
    assert not is_slurm_task(batch)
    assert is_slurm_task(SLURM)
    assert task_environment(batch)["WORLD_SIZE"] == "1"


def test_ports() -> None:
    for job, step in ((0, 0), (1, 0), (19_999, 0), (20_000, 3), (2**31, 4294967290)):
        ports = step_ports(job, step)
        assert len(set(ports)) == len(ports) > 4
        assert set(ports) <= set(MASTER_PORTS)
        assert ports_of_meeting(f"{job}.{step}.2", ports[0]) == ports
        assert ports_of_meeting(f"{job}.{step}.2", 4711) == [4711]  # the user's own
    assert not set(step_ports(7, 0)) & {*step_ports(8, 0), *step_ports(7, 1)}
    assert 1024 <= free_port() < 65_536
