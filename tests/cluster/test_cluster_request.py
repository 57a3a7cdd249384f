"""What can be asked of a cluster, and what is refused before anything is submitted."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mres.cluster.limits import parse_time_limit
from mres.cluster.options import build_parser
from mres.cluster.request import JobRequest, make_request
from mres.cluster.values import parse_directives
from mres.config import load_config
from mres.errors import UserError


def request(*options: str, overrides: tuple[str, ...] = ()) -> JobRequest:
    parsed = build_parser(None).parse_intermixed_args(["--config", "unread.yaml", *options])
    return make_request(parsed, load_config(None, overrides))


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90),
        ("90:01", 91),
        ("12:00:00", 720),
        ("0:05:30", 6),
        ("2-0", 2880),
        ("2-00:30", 2910),
        ("2-00:00:00", 2880),
        ("1-02:03:04", 1564),
    ],
)
def test_time_limits(text: str, minutes: int) -> None:
    assert parse_time_limit(text) == minutes


@given(days=st.integers(0, 30), hours=st.integers(0, 23), minutes=st.integers(5, 59))
def test_time_limit_forms_agree(days: int, hours: int, minutes: int) -> None:
    total = (days * 24 + hours) * 60 + minutes
    forms = [
        f"{days}-{hours:02}:{minutes:02}:00",
        f"{days}-{hours}:{minutes}",
        f"{days * 24 + hours}:{minutes}:00",
        str(total),
    ]
    assert {parse_time_limit(form) for form in forms} == {total}


@pytest.mark.parametrize("text", ["", "two days", "1:2:3:4", "-5", "1.5", "0", "0-0"])
def test_time_limits_refused(text: str) -> None:
    with pytest.raises(UserError, match="--time"):
        parse_time_limit(text)


def test_directives() -> None:
    assert parse_directives(["reservation=r1", "--exclusive", "gpu_bind=closest"]) == {
        "reservation": "r1",
        "exclusive": True,
        "gpu-bind": "closest",
    }


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["nodes=2"], "use --nodes instead"),
        (["ntasks_per_node=2"], "use --tasks-per-node instead"),
        (["signal=USR1@60"], "use --signal-delay instead"),
        (["open-mode=truncate"], "sets open-mode itself"),
        (["mail-type="], "expected key=value"),
        (["=x"], "expected key=value"),
        (["nice=1", "nice=2"], "given twice"),
    ],
)
def test_directives_refused(options: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_directives(options)


def test_one_task_a_gpu() -> None:
    asked = request("--nodes", "4", "--gpus-per-node", "8", "--partition", "gpu", overrides=("data.workers=6",))
    assert asked == JobRequest(
        "slurm", 4, 8, 8, cpus_per_task=8, directives={"partition": "gpu"}, distribution="block:block", cpu_bind="cores"
    )
    assert asked.world_size == 32


def test_cpu_tasks() -> None:
    asked = request("--cluster", "local", "--tasks-per-node", "2")
    assert (asked.gpus_per_node, asked.world_size, asked.max_requeues, asked.step_options) == (0, 2, 0, ())
    assert request("--cluster", "local").world_size == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("", "say what a node has: --gpus-per-node"),
        ("--gpus-per-node 8 --tasks-per-node 4", "--tasks-per-node 4 contradicts --gpus-per-node 8"),
        ("--cluster local --qos high", "--qos has no effect with --cluster local"),
        ("--cluster local --cpus-per-task 3", "--cpus-per-task has no effect"),
        ("--cluster local --max-requeues 3", "--max-requeues has no effect"),
        ("--cluster debug --sbatch nice=1", "--sbatch has no effect with --cluster debug"),
        ("--cluster local --profile a800", "--profile has no effect with --cluster local"),
        ("--cluster local --env A=1", "--env has no effect with --cluster local"),
        ("--gpus-per-node 1 --container-mounts /a:/b", "--container-mounts has no effect without --container-image"),
        ("--gpus-per-node 1 --partition=", "--partition '': expected one line"),
        ("--gpus-per-node 1 --distribution=a\x7f#SBATCH", "expected one line"),
        ("--gpus-per-node 1 --python /gone/python", "--python /gone/python: there is no program"),
        ("--cluster local --nodes 2", "--nodes 2 does not go with --cluster local"),
        ("--cluster debug --tasks-per-node 2", "runs one task in this process, not 2"),
        ("--cluster debug --time 60", "--time has no effect with --cluster debug"),
    ],
)
def test_options_without_effect_are_refused(options: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        request(*options.split())


def test_a_run_that_would_start_over_is_not_requeued() -> None:
    never = ("checkpoint.resume=never",)
    with pytest.raises(UserError, match=r"checkpoint\.resume=never would take a requeued job back"):
        request("--gpus-per-node", "1", overrides=never)
    with pytest.raises(UserError, match="or no --time"):
        request("--cluster", "local", "--time", "60", overrides=never)
    assert request("--gpus-per-node", "1", "--max-requeues", "0", overrides=never).max_requeues == 0
    assert request("--cluster", "local", overrides=never).max_requeues == 0


@pytest.mark.parametrize(
    ("options", "overrides", "words"),
    [
        ("--gpus-per-node 2", "parallel.strategy=single", "parallel.strategy=single runs on one rank"),
        ("--gpus-per-node 3", "data.images_per_batch=8", "data.images_per_batch=8 cannot be split among 3 ranks"),
        ("--gpus-per-node 8 --nodes 2", "train.accumulate=4", "train.accumulate=4 does not divide a rank's 2 images"),
        ("--gpus-per-node 8 --nodes 2", "parallel.shard_ranks=3", "shard_ranks=3 does not divide the 16 ranks"),
        (
            "--gpus-per-node 4 --nodes 3",
            "parallel.shard_ranks=6 data.images_per_batch=12",
            "cut across machines of 4 ranks",
        ),
        (
            "--gpus-per-node 8",
            "data.train=s3://b/set parallel.timeout_s=60",
            "parallel.timeout_s=60 is not above the 186 s",
        ),
    ],
)
def test_a_job_that_could_not_start_is_refused(options: str, overrides: str, words: str) -> None:
    with pytest.raises(UserError, match=r"the job cannot run on \d+ node\(s\) x \d+ task\(s\) = \d+ rank") as caught:
        request(*options.split(), overrides=tuple(overrides.split()))
    assert words in str(caught.value)


def test_a_ds_config_that_contradicts_the_job_is_refused(tmp_path: Path) -> None:
    """By the job's own world size, which nobody has launched yet."""
    file = tmp_path / "ds.json"
    file.write_text('{"train_micro_batch_size_per_gpu": 4}')
    overrides = ("parallel.strategy=zero", f"parallel.ds_config={file}", "data.images_per_batch=32")
    assert request("--gpus-per-node", "8", overrides=overrides).world_size == 8
    with pytest.raises(UserError, match=r"train_micro_batch_size_per_gpu = 4 .* contradicts .* over 16 rank\(s\)"):
        request("--gpus-per-node", "8", "--nodes", "2", overrides=overrides)
