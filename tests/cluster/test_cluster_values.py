"""What is handed on to srun and into the tasks, and the container that they run in."""

from pathlib import Path

import pytest

from mres.cluster.container import make_container
from mres.cluster.values import check_setup, parse_env, parse_srun_args, told_command
from mres.errors import UserError


def test_srun_args() -> None:
    assert parse_srun_args(["--mpi=none", "unbuffered", "gpu_bind=closest"]) == (
        "--mpi=none",
        "--unbuffered",
        "--gpu-bind=closest",
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--cpu-bind=none", "use --cpu-bind instead"),
        ("container-image=x", "use --container-image instead"),
        ("kill-on-bad-exit=0", "requeueing depends on it"),
        ("ntasks=3", "ranks' numbers depend on it"),
        ("=x", "expected key=value"),
    ],
)
def test_srun_args_refused(given: str, words: str) -> None:
    with pytest.raises(UserError, match="--srun-arg") as caught:
        parse_srun_args([given])
    assert words in str(caught.value)


def test_credentials_are_kept_apart() -> None:
    """They go to the job through sbatch's own environment, not through a text that is kept."""
    told, private = parse_env(
        ["A=1", "EMPTY=", "WANDB_API_KEY=s3cret", "HTTPS_PROXY=http://me:s3cret@proxy:80", "HOME"], {"HOME": "/home/me"}
    )
    assert told == {"A": "1", "EMPTY": ""}
    assert private == {"WANDB_API_KEY": "s3cret", "HTTPS_PROXY": "http://me:s3cret@proxy:80", "HOME": "/home/me"}


def test_the_command_is_kept_without_credentials() -> None:
    words = [
        "submit.py",
        "--env",
        "WANDB_API_KEY=s3cret",
        "--env=HF_TOKEN=s3cret",
        "--env",
        "A=1",
        "run.name=a",
        "--env",
        "B",
    ]
    told = ["submit.py", "--env", "WANDB_API_KEY=…", "--env=HF_TOKEN=…", "--env", "A=1", "run.name=a", "--env", "B"]
    assert told_command(words) == told
    assert "s3cret" not in "".join(told_command(["--env", "PROXY=http://me:s3cret@proxy:80"]))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["1A=2"], "expected NAME=VALUE"),
        (["RANK=0"], "its own value"),
        (["SLURM_JOB_ID=7"], "its own value"),
        (["A=1", "A=2"], "given twice"),
        (["NOWHERE"], "is not set here"),
    ],
)
def test_env_refused(given: list[str], words: str) -> None:
    with pytest.raises(UserError, match="--env") as caught:
        parse_env(given, {})
    assert words in str(caught.value)


def test_setup_lines() -> None:
    lines = ["module load cuda/12.4", "export HF_TOKEN=$(cat ~/.token)", "source ~/env.sh && export A=1"]
    assert check_setup(lines) == tuple(lines)


@pytest.mark.parametrize(
    "line", ["", "a\nb", "export HF_TOKEN=s3cret", "WANDB_API_KEY='s3cret' wandb login", "curl https://me:s3cret@x/y"]
)
def test_setup_lines_refused(line: str) -> None:
    with pytest.raises(UserError, match="--setup") as caught:
        check_setup([line])
    assert "s3cret" not in str(caught.value)


WORKDIR = Path("/home/me/mres")


def test_the_job_sees_its_own_folders_inside_as_outside() -> None:
    container = make_container("nvcr.io#nvidia/pytorch:24.05-py3", ["/lustre/data:/data:ro,/scratch"], WORKDIR)
    assert container is not None
    seeing = container.seeing(Path("/lustre/runs/a"), WORKDIR / "deeper", Path("/scratch/code"))
    mounts = "/lustre/data:/data:ro,/scratch:/scratch,/home/me/mres:/home/me/mres,/lustre/runs/a:/lustre/runs/a"
    assert seeing.srun_options() == (
        "--container-image=nvcr.io#nvidia/pytorch:24.05-py3",
        f"--container-mounts={mounts}",
        "--container-workdir=/home/me/mres",
    )
    assert seeing.outside(Path("/data/refcoco/train")) == Path("/lustre/data/refcoco/train")
    assert seeing.outside(WORKDIR / "data") == WORKDIR / "data"
    assert seeing.outside(Path("/opt/weights")) is None


def test_a_mount_that_hides_the_runs_folder_is_mounted_over() -> None:
    """Something else lies at the place that the job needs: the job's own comes on top of it."""
    container = make_container("x", ["/ssd:/lustre"], WORKDIR)
    assert container is not None
    assert container.outside(Path("/lustre/runs")) == Path("/ssd/runs")
    assert container.seeing(Path("/lustre/runs")).outside(Path("/lustre/runs/a")) == Path("/lustre/runs/a")


@pytest.mark.parametrize(
    ("image", "given", "words"),
    [
        (None, ["/a:/b"], "no effect without --container-image"),
        ("nvcr.io/nvidia/pytorch:24.05-py3", [], "write nvcr.io#nvidia/pytorch:24.05-py3"),
        ("two words", [], "expected an image"),
        ("https://me:s3cret@registry/image", [], "expected an image"),
        ("x", ["data:/data"], "expected /OUTSIDE:/INSIDE"),
        ("x", ["/a:/b:ro:rw"], "expected /OUTSIDE:/INSIDE"),
        ("x", ["/a,"], "expected /OUTSIDE:/INSIDE"),
    ],
)
def test_containers_refused(image: str | None, given: list[str], words: str) -> None:
    with pytest.raises(UserError, match="--container-") as caught:
        make_container(image, given, WORKDIR)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("given", "image"),
    [
        ("images/mres.sqsh", "/home/me/mres/images/mres.sqsh"),
        ("./mres.sqsh", "/home/me/mres/mres.sqsh"),
        ("/lustre/mres.sqsh", "/lustre/mres.sqsh"),
        ("ubuntu:24.04", "ubuntu:24.04"),
        ("docker://me/mres:1", "docker://me/mres:1"),
    ],
)
def test_images(given: str, image: str) -> None:
    container = make_container(given, [], WORKDIR)
    assert container is not None
    assert container.image == image
