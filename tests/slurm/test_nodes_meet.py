"""Ranks on several nodes find one another: names that do not resolve, ports that are taken, two steps at once."""

import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import ROOT
from slurm_lab import Job, Lab
from tiny_run import losses

from mres.supervise.slurm_env import step_ports

TWO_NODES = ("--nodes", "2", "--tasks-per-node", "1", "--cpus-per-task", "1")
# Accepts and never answers, at the ports that are named.
MUTE = (
    "import socket, sys, time; held = [socket.create_server(('', int(port))) for port in sys.argv[1:]]; time.sleep(600)"
)


def network(log: str) -> list[str]:
    return re.findall(r"^network: .*$", log, flags=re.MULTILINE)


@pytest.mark.exhaustive
def test_nodes_that_cannot_resolve_their_own_names(
    lab_with: Callable[..., Lab], lab_config: Path, undisturbed: Callable[[int], list[dict]]
) -> None:
    lab = lab_with(names=False)
    job = lab.submit(lab_config, *TWO_NODES, "run.name=lab")
    assert job.wait("COMPLETED", "FAILED") == "COMPLETED", job.log
    assert job.losses() == undisturbed(2)
    assert network(job.log) == [f"network: eth0 (10.78.{lab.number}.11), 2 machines"]
    assert {beat.host for beat in job.beats.values()} == set(lab.nodes[:2])


# Debian's installer gives a machine's own name the address 127.0.1.1; others have its address from DNS.
AS_DEBIAN = """
own=$(hostname) hosts=$(mktemp)
{ echo "127.0.0.1 localhost"; echo "127.0.1.1 $own"; grep -v " $own " /etc/hosts; } > "$hosts"
mount --bind "$hosts" /etc/hosts
getent ahosts "$own" > "$2-$own.txt"
exec $1
"""


@pytest.mark.exhaustive
def test_nodes_that_know_themselves_as_127_0_1_1(
    lab: Lab, lab_config: Path, undisturbed: Callable[[int], list[dict]]
) -> None:
    train = f"{sys.executable} {ROOT / 'launch' / 'train.py'} --config {lab_config} train.callbacks=[]"
    folder = lab_config.parent
    words = ["unshare", "--mount", "bash", "-ec", AS_DEBIAN, "bash", train, str(folder / "hosts")]
    lab.ask("srun", "-N2", "-n2", "--kill-on-bad-exit=1", f"--output={folder}/rank-%t.log", *words, check=False)
    said = (folder / "rank-0.log").read_text()
    for node in lab.nodes[:2]:
        assert (folder / f"hosts-{node}.txt").read_text().startswith("127.0.1.1 ")
    assert network(said) == [f"network: eth0 (10.78.{lab.number}.11), 2 machines"], said
    assert losses(folder / "runs" / "lab") == undisturbed(2)


@pytest.mark.exhaustive
def test_two_steps_in_one_allocation_and_ports_that_are_taken(
    lab: Lab, lab_config: Path, undisturbed: Callable[[int], list[dict]]
) -> None:
    """Both first ports of both steps are held by somebody who never answers."""
    train = [sys.executable, str(ROOT / "launch" / "train.py"), "--config", str(lab_config)]
    step = "srun -N2 -n2 --overlap --kill-on-bad-exit=1 --output={log} {train} run.name={name}"
    wanted = lab.ask("scontrol", "show", "job", "-o", check=False)
    number = 1 + max((int(n) for n in re.findall(r"JobId=(\d+)", wanted)), default=0)
    taken = [step_ports(number, 0)[0], *step_ports(number, 1)[:2], *step_ports(number, 2)[:2]]
    lines = ["#!/bin/bash", f"{shlex.join([sys.executable, '-c', MUTE, *map(str, taken)])} &"]
    runs = [lab_config.parent / "runs" / name for name in ("one", "two")]
    for run in runs:
        log = run.parent / f"{number}_{run.name}.log"
        lines.append(step.format(log=log, train=shlex.join(train), name=run.name) + f" & {run.name}=$!")
    lines.append("wait $one && wait $two; code=$?; kill %1; exit $code")
    script = lab_config.parent / "two.sh"
    script.write_text("\n".join(lines) + "\n")
    runs[0].parent.mkdir()
    said = lab.ask(
        "sbatch", "--parsable", "-N2", "--ntasks-per-node=1", f"--output={runs[0].parent}/batch.log", str(script)
    )
    assert said.strip() == str(number)
    jobs = [Job(lab, str(number), run) for run in runs]
    assert jobs[0].wait("COMPLETED", "FAILED") == "COMPLETED", _everything(runs[0].parent)
    for job in jobs:
        assert job.losses() == undisturbed(2)


def _everything(folder: Path) -> str:
    return "".join(f"== {path}\n{path.read_text()}" for path in sorted(folder.glob("*.log")))


@pytest.fixture
def wrong_on(lab_config: Path) -> Callable[[str], Path]:
    """A launch/train.py that gets an unknown key where the condition, in Python, is true of the task."""

    def made(condition: str) -> Path:
        script = lab_config.parent / "train.py"
        script.write_text(
            "import os, runpy, sys\n"
            f"sys.argv += ['optim.lrr=1'] if {condition} else []\n"
            f"runpy.run_path({str(ROOT / 'launch' / 'train.py')!r}, run_name='__main__')\n"
        )
        return script

    return made


@pytest.mark.exhaustive
def test_what_keeps_ranks_away_is_in_the_log_of_rank_0(
    lab: Lab, lab_config: Path, wrong_on: Callable[[str], Path]
) -> None:
    """Of two nodes with two ranks each, one rank that is not the first of its node."""
    script = wrong_on("os.environ['SLURM_PROCID'] == '3'")
    words = [sys.executable, str(script), "--config", str(lab_config)]
    log = lab_config.parent / "rank-%t.log"
    lab.ask("srun", "-N2", "--ntasks-per-node=2", "--kill-on-bad-exit=1", f"--output={log}", *words, check=False)
    said = [(lab_config.parent / f"rank-{rank}.log").read_text() for rank in range(4)]
    assert (
        f"error: rank 3 on {lab.nodes[1]}: unknown key 'optim.lrr' (command line); did you mean 'optim.lr'?\n"
        in said[0]
    )
    assert "Traceback" not in "".join(said)


@pytest.fixture
def hidden(lab: Lab) -> Iterator[Callable[[Path], str]]:
    """Takes a folder away from the second node, as where a share is not mounted; the node's name."""
    node = lab.nodes[1]

    def hide(folder: Path) -> str:
        lab.node(node, "stop")
        lab.node(node, "start", folder)
        lab.ask("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        return node

    yield hide
    lab.node(node, "stop")
    lab.node(node, "start")


@pytest.mark.exhaustive
def test_data_that_one_node_does_not_see_are_named_in_the_log_of_rank_0(
    lab: Lab, lab_config: Path, tiny_shards: Path, hidden: Callable[[Path], str]
) -> None:
    node = hidden(tiny_shards)
    job = lab.submit(lab_config, *TWO_NODES, "run.name=lab")
    assert job.wait("COMPLETED", "FAILED") == "FAILED", job.log
    (log,) = job.run_dir.rglob(f"{job.number}_0.log")
    assert f"error: rank 1 on {node}: no shard set at '{tiny_shards}'" in log.read_text(), job.log
    assert job.facts["ExitCode"] == "2:0"
    assert job.steps == []
    assert "Traceback" not in job.log


@pytest.mark.exhaustive
def test_a_run_folder_that_is_another_one_on_one_node(
    lab: Lab, lab_config: Path, hidden: Callable[[Path], str]
) -> None:
    """It would train, and its checkpoints would be incomplete; under submit.py SLURM itself finds no place for the log."""
    share, own = lab_config.parent / "share", lab_config.parent / "logs"
    share.mkdir()
    own.mkdir()
    node = hidden(share)
    words = [sys.executable, str(ROOT / "launch" / "train.py"), "--config", str(lab_config), f"run.dir={share}"]
    lab.ask("srun", "-N2", "-n2", "--kill-on-bad-exit=1", f"--output={own}/rank-%t.log", *words, check=False)
    said = (own / "rank-0.log").read_text()
    assert f"{node} (rank 1): run folder: '{share}/lab' is not the folder that rank 0 has" in said
    assert "Traceback" not in said
    assert not (share / "lab" / "metrics.jsonl").exists()
