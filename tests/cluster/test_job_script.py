"""The batch script as a text; that SLURM takes it is asserted in tests/slurm."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from job_scripts import command_of

from mres.cluster.nodes import EXCLUDED
from mres.cluster.request import JobRequest
from mres.cluster.script import Program, script_text
from mres.config import load_config
from mres.errors import UserError

REQUEST = JobRequest("slurm", nodes=4, gpus_per_node=8, tasks_per_node=8, cpus_per_task=10, python="/env/bin/python")
PROGRAM = Program(
    Path("/shared/mres"), ("--config", "/shared/my configs/a.yaml", "optim.lr=1e-4"), Path("/shared/work")
)


def text(request: JobRequest = REQUEST, program: Program = PROGRAM, run_dir: str = "/shared/runs") -> str:
    script = script_text(request, load_config(None, [f"run.dir={run_dir}", "run.name=big"]), program)
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    return script


def directives(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


def test_what_is_asked_for() -> None:
    request = replace(
        REQUEST,
        limit_min=2880,
        signal_delay_s=300,
        directives={"partition": "gpu", "exclude": "n[3,7]", "exclusive": True},
    )
    assert directives(text(request)) == [
        "--job-name=big",
        "--nodes=4",
        "--ntasks-per-node=8",
        "--cpus-per-task=10",
        "--gpus-per-node=8",
        "--time=2880",
        "--partition=gpu",
        "--exclude='n[3,7]'",
        "--exclusive",
        "--chdir=/shared/work",
        "--output=/shared/runs/big/slurm/%j_0.log",
        "--open-mode=append",
        "--signal=USR2@300",
        "--requeue",
    ]
    assert "export SRUN_CPUS_PER_TASK=10\n" in text(request)


def test_nodes_that_failed_twice_are_avoided_beside_the_users(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / EXCLUDED).write_text("n7  # lost\nn8\n")
    assert "--exclude=n7,n8" in directives(text(run_dir=str(tmp_path)))
    request = replace(REQUEST, directives={"exclude": "n[3,7]"})
    assert "--exclude='n[3,7],n7,n8'" in directives(text(request, run_dir=str(tmp_path)))


def test_without_limit_gpus_and_requeue() -> None:
    request = JobRequest("slurm", 1, 0, 2, cpus_per_task=2, max_requeues=0)
    lines = directives(text(request))
    assert "--no-requeue" in lines
    assert not [line for line in lines if line.startswith(("--time", "--gpus", "--requeue"))]
    assert "World size 2 = 1 node(s) x 2 task(s), on CPUs" in text(request)


def test_what_runs() -> None:
    words = command_of(text(replace(REQUEST, srun_args=("--network=a b",), distribution="block:block")))
    controller, task = words[: words.index("--")], words[words.index("--") + 1 :]
    assert controller[:3] == ["/env/bin/python", "-u", "/shared/mres/mres/cluster/batch.py"]
    assert {"--srun-arg=--network=a b", "--srun-arg=--distribution=block:block"} < set(controller)
    assert controller[controller.index("--run-dir") + 1] == "/shared/runs/big"
    assert task == ["/env/bin/python", "-u", "/shared/mres/launch/train.py", *PROGRAM.argv]


def test_variables_are_told_unless_they_are_private() -> None:
    request = replace(REQUEST, setup=("module load cuda",), env={"A": "it's $B"}, private_env={"TOKEN": "hf_secret"})
    script = text(request)
    shell = f'module() {{ :; }}\n{script.partition("exec ")[0]}echo "$A"'
    told = subprocess.run(["bash"], input=shell, text=True, capture_output=True, check=True, env={"TOKEN": "hf_secret"})
    assert told.stdout == "it's $B\n"
    refused = subprocess.run(["bash"], input=shell, text=True, capture_output=True, check=False, env={})
    assert (refused.stdout, "--env TOKEN has no value" in refused.stderr) == ("", True)
    assert script.index("module load cuda") < script.index("export A=")
    assert "TOKEN" in script
    assert "hf_secret" not in script


def test_names_that_sbatch_would_read_otherwise() -> None:
    lines = directives(text(run_dir="/shared/100%j runs"))
    assert "--output='/shared/100%%j runs/big/slurm/%j_0.log'" in lines
    with pytest.raises(UserError, match="line break"):
        text(program=replace(PROGRAM, folder=Path("/shared/a\nb")))
