"""A cluster's options in a file: which there are, what wins, and where each value came from."""

import argparse
from pathlib import Path

import pytest
import yaml

from mres.cluster.options import build_parser
from mres.cluster.profiles import KEYS, apply_profile, origin_lines
from mres.cluster.request import JobRequest, make_request
from mres.config import load_config
from mres.errors import UserError

SHIPPED = sorted((Path(__file__).parents[2] / "configs" / "cluster").glob("*.yaml"))


def applied(*words: str) -> tuple[argparse.Namespace, dict[str, str]]:
    parser = build_parser(None)
    options = parser.parse_intermixed_args(["--config", "unread.yaml", *words])
    return options, apply_profile(options, parser)


def request(*words: str) -> JobRequest:
    return make_request(applied(*words)[0], load_config(None))


def profile(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


def test_a_profile_may_set_what_has_no_default() -> None:
    """Else what the command line gives could not be told from what it leaves out."""
    options, origins = applied()
    assert {key: value for key in KEYS if (value := getattr(options, key.replace("-", "_"))) not in (None, [])} == {}
    assert origins == {}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_profiles_are_accepted(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # found beside the package as well
    asked = request("--profile", path.stem, "--nodes", "2")
    values = yaml.safe_load(path.read_text())
    assert asked.gpus_per_node == values["gpus-per-node"]
    assert asked.env["NCCL_IB_HCA"] == values["env"]["NCCL_IB_HCA"]
    assert f"--distribution={values['distribution']}" in asked.step_options


def test_the_command_line_wins_and_each_value_tells_its_origin(tmp_path: Path) -> None:
    path = profile(
        tmp_path,
        """
        partition: low
        nodes: 4
        gpus_per_node: 8
        time: 2-00:00:00
        setup: [module load cuda/12.4]
        env: {NCCL_DEBUG: WARN, NCCL_IB_TIMEOUT: 22}
        sbatch: {exclusive: true, gpu_bind: closest}
        srun-arg: network=sn_all
        """,
    )
    words = [
        "--profile",
        path,
        "--nodes",
        "1",
        "--env",
        "NCCL_DEBUG=INFO",
        "--setup",
        "ulimit -l",
        "--sbatch",
        "gpu-bind=none",
    ]
    options, origins = applied(*words)
    asked = make_request(options, load_config(None))
    assert (asked.nodes, asked.gpus_per_node, asked.limit_min) == (1, 8, 2880)
    assert asked.directives == {"partition": "low", "exclusive": True, "gpu-bind": "none"}
    assert asked.setup == ("module load cuda/12.4", "ulimit -l")
    assert asked.env == {"NCCL_DEBUG": "INFO", "NCCL_IB_TIMEOUT": "22"}
    assert asked.srun_args == ("--network=sn_all",)
    told = "\n".join(origin_lines(options, origins, asked))
    assert f"--partition low  ({path})" in told
    assert "--nodes 1  (command line)" in told
    assert "--distribution block:block  (default)" in told
    assert f"({path} and command line)" in told


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("partitoin: gpu", "did you mean 'partition'"),
        ("config: x.yaml", "unknown key 'config'"),
        ("nodes: 0", "expected a whole number from 1"),
        ("nodes: [1, 2]", "expected one value"),
        ("partition: true", "expected one value"),
        ("env: NCCL_DEBUG=INFO", "expected a mapping"),
        ("env: {WANDB_API_KEY: abcdef12345}", "WANDB_API_KEY is a credential"),
        ("setup: export HF_TOKEN=abcdef12345", "--setup sets HF_TOKEN"),
        ("gpus-per-node: 8\ngpus_per_node: 4", "given twice"),
        ("- partition", "expected options"),
        ("partition: [", "not YAML"),
    ],
)
def test_profiles_refused(tmp_path: Path, text: str, words: str) -> None:
    path = profile(tmp_path, text)
    with pytest.raises(UserError) as caught:
        applied("--profile", path)
    assert words in str(caught.value)
    assert "mine.yaml" in str(caught.value) or "--setup" in str(caught.value)
    assert "abcdef12345" not in str(caught.value)


def test_a_profile_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"--profile a80: .*did you mean 'a800'"):
        applied("--profile", "a80")
    with pytest.raises(UserError, match="No such file"):
        applied("--profile", "gone/a800.yaml")


def test_a_variable_as_it_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = profile(tmp_path, "gpus-per-node: 1\nenv: {WANDB_API_KEY: null}")
    monkeypatch.setenv("WANDB_API_KEY", "abcdef12345")
    options, origins = applied("--profile", path)
    asked = make_request(options, load_config(None))
    assert (asked.env, asked.private_env) == ({}, {"WANDB_API_KEY": "abcdef12345"})
    assert "abcdef12345" not in repr(asked) + "".join(origin_lines(options, origins, asked))
    monkeypatch.delenv("WANDB_API_KEY")
    with pytest.raises(UserError, match="WANDB_API_KEY is not set here"):
        request("--profile", path)
