"""What the login node refuses of a job: all that training refuses before torch loads, in the same words, and a folder in use."""

import subprocess
from pathlib import Path

import pytest

from mres.cluster import slurm
from mres.cluster.login_node import check_on_login_node
from mres.cluster.options import build_parser
from mres.cluster.request import make_request
from mres.config import load_config
from mres.errors import UserError
from mres.run_folder import held
from mres.train import run as train_run

_NOT_CHECKED = "--no-check-data"


def check(config: Path, *words: str) -> None:
    options = build_parser(None).parse_intermixed_args(
        ["--config", str(config), "--tasks-per-node", "1", "--dry-run", *words]
    )
    loaded = load_config(options.config, options.overrides)
    check_on_login_node(options, make_request(options, loaded), loaded)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("override", "is_of_data"),
    [
        ("data.train=/nonexistent", True),
        ("data.kind_weights={strange: 2}", True),
        ("data.expressions_per_image=900", True),
        ("checkpoint.init_from=/nonexistent", True),
        ("evaluate.weights=ema", False),
        ("train.callbacks=[/nonexistent.py:Mine]", False),
        ("train.callbacks=[json:JSONDecoder]", False),
        ("checkpoint.keep_best=oIoU", False),
    ],
)
def test_what_training_refuses(config: Path, override: str, is_of_data: bool) -> None:
    words = [override, *(["evaluate.every=5"] if override == "evaluate.weights=ema" else [])]
    with pytest.raises(UserError) as by_training:
        train_run.main(["--config", str(config), "--dry-run", *words])
    with pytest.raises(UserError) as by_login_node:
        check(config, *words)
    said = str(by_login_node.value)
    assert said.startswith(str(by_training.value))
    assert (_NOT_CHECKED in said) == is_of_data
    if is_of_data:
        check(config, *words, _NOT_CHECKED)
    else:
        with pytest.raises(UserError):
            check(config, *words, _NOT_CHECKED)


def test_what_can_start_is_not_refused(config: Path) -> None:
    check(config)
    assert not Path("runs").exists()


def test_a_folder_that_takes_nothing(config: Path, small_disk: Path | None) -> None:
    if small_disk is None:
        pytest.skip("mounting needs root")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match=r"run\.dir=.*Read-only"):
        check(config, f"run.dir={small_disk}")


def test_a_run_that_somebody_trains(config: Path) -> None:
    with (
        held(load_config(config, ["run.name=r"]).run_dir),
        pytest.raises(UserError, match=r"in use by another launch.*run\.name"),
    ):
        check(config, "run.name=r")
    check(config, "run.name=r")


def test_options_about_snapshots_have_an_effect_on_slurm_only(config: Path) -> None:
    for option in ("--no-snapshot", "--snapshot-limit=3", "--no-check-data"):
        with pytest.raises(UserError, match=f"{option.partition('=')[0]} has no effect with --cluster local"):
            check(config, "--cluster", "local", option)


def test_no_file_beside_the_controller_hides_one_of_python() -> None:
    """The batch script starts it by its path, so its folder is the first where modules are looked for."""
    import sys

    names = {path.stem for path in Path(slurm.__file__).parent.glob("*.py")}
    assert not names & sys.stdlib_module_names


def test_data_as_the_container_sees_them(config: Path, tiny_shards: Path, folder: Path) -> None:
    """Paths in the config are those inside; what is at the same place outside is looked at as ever."""
    image = ("--container-image", "me/mres:1", "--container-mounts")
    data = str(tiny_shards.parent)
    with pytest.raises(UserError, match=r"data\.train=\S+ is in no folder that the container sees; --container-mounts"):
        check(config, *image, "/usr")
    check(config, *image, data)
    with pytest.raises(UserError, match=r"data\.expressions_per_image"):
        check(config, *image, data, "data.expressions_per_image=900")
    mapped = (*image, f"{data}:/data", "data.train=/data/shards", "data.val=/data/shards")
    check(config, *mapped)
    with pytest.raises(UserError, match=f"data.train=/data/gone is '{data}/gone' outside of the container"):
        check(config, *mapped, "data.train=/data/gone")
    check(config, *image, "/usr", _NOT_CHECKED)
    with pytest.raises(UserError, match=r"--container-image \S+/gone.sqsh is not there"):
        check(config, "--container-image", "gone.sqsh", "--container-mounts", data)


def test_the_folder_of_a_sweep_is_no_run_s(config: Path, folder: Path) -> None:
    (folder / "runs" / "rates").mkdir(parents=True)
    (folder / "runs" / "rates" / "sweep.json").write_text("[]")
    with pytest.raises(UserError, match=r"run\.name: .*folder of a sweep"):
        check(config, "run.dir=runs", "run.name=rates")
