"""Any launcher, one script: what docs/slurm.md lists, on real nodes, with the losses of the same ranks on one machine."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import slurm_lab
from commands import ROOT
from slurm_lab import Job, Lab

STEPS = 6
BIN = Path(sys.executable).parent
TRAIN = ROOT / "launch" / "train.py"
PORT = 29400
HEAD = """
export HEAD=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -1) HOSTFILE=hostfile.$SLURM_JOB_ID
scontrol show hostnames $SLURM_JOB_NODELIST | sed 's/$/ slots=1/' > $HOSTFILE
"""
# $TRAIN stands for the script and its arguments.
LAUNCHERS = {
    "srun": "srun python $TRAIN",
    "torchrun": "srun bash -c 'torchrun --nnodes $SLURM_NNODES --node-rank $SLURM_NODEID --nproc-per-node 1"
    f" --master-addr $HEAD --master-port {PORT} $TRAIN'",
    "c10d": "srun torchrun --nnodes $SLURM_NNODES --nproc-per-node 1 --rdzv-id $SLURM_JOB_ID --rdzv-backend c10d"
    f" --rdzv-endpoint $HEAD:{PORT} $TRAIN",
    "deepspeed-pdsh": f"deepspeed --hostfile $HOSTFILE --launcher pdsh --master_port {PORT} $TRAIN",
    "deepspeed-slurm": "deepspeed --hostfile $HOSTFILE --launcher slurm --no_ssh_check --master_addr $HEAD"
    f" --master_port {PORT} $TRAIN",
    "deepspeed-no-ssh": "srun bash -c 'deepspeed --hostfile $HOSTFILE --no_ssh --node_rank $SLURM_NODEID --master_addr $HEAD"
    f" --master_port {PORT} $TRAIN'",
}
ELASTIC = (
    "srun --kill-on-bad-exit=0 --wait=0 torchrun --nnodes 1:2 --max-restarts 3 --nproc-per-node 1 --rdzv-id $SLURM_JOB_ID"
    f" --rdzv-backend c10d --rdzv-endpoint $HEAD:{PORT} $TRAIN"
)


@pytest.fixture
def config(tiny_shards: Path, tmp_path: Path) -> Path:
    return slurm_lab.lab_config(tmp_path, tiny_shards, steps=STEPS, train={"callbacks": []})


@pytest.fixture(scope="module")
def expected(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[dict]]:
    """The losses on so many ranks of one machine."""
    made: dict[int, list[dict]] = {}

    def losses(ranks: int) -> list[dict]:
        folder = tmp_path_factory.mktemp("expected")
        if ranks not in made:
            made[ranks] = slurm_lab.undisturbed(slurm_lab.lab_config(folder, tiny_shards, steps=STEPS), folder, ranks)
        return made[ranks]

    return losses


@pytest.fixture
def ssh(lab: Lab, tmp_path: Path) -> Iterator[Path]:
    """A daemon on each node, with keys of this test's own; the folder of an `ssh` that knows them. They end with the test."""
    if shutil.which("pdsh") is None or not Path("/usr/sbin/sshd").exists():
        pytest.skip("not installed: pdsh, openssh-server")
    folder = tmp_path / "ssh"
    folder.mkdir()
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd does not start without
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    options = {
        "Port": 2222, "HostKey": folder / "host", "AuthorizedKeysFile": folder / "user.pub", "StrictModes": "no",
        "UsePAM": "no", "PermitRootLogin": "yes", "PasswordAuthentication": "no",
    }  # fmt: skip
    (folder / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in options.items()))
    (folder / "ssh").write_text(
        f"#!/bin/sh\nexec /usr/bin/ssh -p 2222 -i {folder}/user -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
        ' -o LogLevel=ERROR "$@"\n'
    )
    (folder / "ssh").chmod(0o755)
    daemons = [
        subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{node}", "unshare", "--uts", "bash", "-c",
             f"hostname {node}; exec /usr/sbin/sshd -D -e -f {folder}/sshd_config"],
            stderr=subprocess.DEVNULL,
        )
        for node in lab.nodes
    ]  # fmt: skip
    yield folder
    for daemon in daemons:
        daemon.terminate()
        daemon.wait()


def submit(lab: Lab, config: Path, nodes: int, launcher: str, *overrides: str, path: str = "") -> Job:
    """A batch script such as anybody writes."""
    run_dir = config.parent / "runs" / "own"
    (run_dir / "slurm").mkdir(parents=True)
    words = " ".join([str(TRAIN), "--config", str(config), "run.name=own", *overrides])
    script = f"#!/bin/bash\nexport PATH={path}{BIN}:$PATH TRAIN='{words}'\n{HEAD}{launcher.replace('$TRAIN', words)}\n"
    file = config.parent / "own.sh"
    file.write_text(script)
    number = lab.ask(
        "sbatch", "--parsable", "-N", str(nodes), "--ntasks-per-node=1", "--cpus-per-task=2",
        "-D", str(config.parent), "-o", f"{run_dir}/slurm/%j_own.log", str(file),
    ).strip()  # fmt: skip
    return Job(lab, number, run_dir)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("launcher", "nodes"), [*((name, 2) for name in LAUNCHERS), ("torchrun", 4), ("c10d", 4)])
def test_launchers(
    lab: Lab,
    config: Path,
    expected: Callable[[int], list[dict]],
    launcher: str,
    nodes: int,
    request: pytest.FixtureRequest,
) -> None:
    path = f"{request.getfixturevalue('ssh')}:" if launcher == "deepspeed-pdsh" else ""
    job = submit(lab, config, nodes, LAUNCHERS[launcher], path=path)
    assert job.wait("COMPLETED", "FAILED") == "COMPLETED", job.log
    assert job.losses() == expected(nodes)


@pytest.mark.exhaustive
def test_salloc(lab: Lab, config: Path, expected: Callable[[int], list[dict]]) -> None:
    lab.ask(
        "salloc", "-N2", "--ntasks-per-node=1", "srun", sys.executable, str(TRAIN), "--config", str(config), "run.name=own",
        cwd=config.parent,
    )  # fmt: skip
    assert Job(lab, "0", config.parent / "runs" / "own").losses() == expected(2)


@pytest.mark.exhaustive
def test_elastic_torchrun_goes_on_without_a_lost_agent(lab: Lab, lab_config: Path) -> None:
    """kill -9 of one node's agent and rank: the other agent starts its rank again, alone, from the newest checkpoint."""
    job = submit(lab, lab_config, 2, ELASTIC)
    job.wait_for_step(8)
    for pid in lab.pids(lab.nodes[1]):
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"torchrun" in words or b"launch/train.py" in words:
            os.kill(pid, signal.SIGKILL)
    job.until(lambda: max(job.steps, default=0) == 30 and job.state in slurm_lab.ENDED, "its end", may_end=("FAILED",))
    assert f"rank 1 ({lab.nodes[1]}" in job.log
    assert "strategy ddp on 1 rank(s)" in job.log
    assert "going on at step 5" in job.log
