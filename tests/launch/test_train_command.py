"""`launch/train.py` as it is typed: under every launcher, and by somebody who makes mistakes."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from commands import light_commands
from tiny_run import EVALUATE, ROOT, TRAIN, Done, lines, run, start, tiny_config, wait, write_config

from mres.io.locks import locked
from mres.testing import free_port

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_shards: Path) -> Path:
    return write_config(tmp_path_factory.mktemp("config"), tiny_shards)


def command(*words: str | Path, cwd: Path, **environ: str) -> "subprocess.CompletedProcess[str]":
    variables = {"PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(cwd), "OMP_NUM_THREADS": "1", **environ}
    return subprocess.run(
        [str(word) for word in words], cwd=cwd, env=variables, capture_output=True, text=True, timeout=300, check=False
    )


LAUNCHERS = {
    "python": [sys.executable],
    "torchrun": [BIN / "torchrun", "--standalone", "--nproc-per-node", "2"],
    "deepspeed": [BIN / "deepspeed", "--num_gpus", "2", "--master_port", "{port}"],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "strategy"),
    [
        pytest.param("python", "fsdp", marks=pytest.mark.exhaustive),
        pytest.param("torchrun", "fsdp", marks=pytest.mark.exhaustive),  # test_stopped_under_a_launcher has it
        pytest.param("deepspeed", "fsdp", marks=pytest.mark.exhaustive),
        ("deepspeed", "zero"),
    ],
)
def test_real_launchers(tmp_path: Path, config: Path, launcher: str, strategy: str) -> None:
    words = [str(word).replace("{port}", str(free_port())) for word in LAUNCHERS[launcher]]
    overrides = [f"parallel.strategy={strategy}", "train.steps=3", "model.dropout=0"]
    if strategy == "zero":
        (tmp_path / "ds.json").write_text('{"steps_per_print":  1000}')
        overrides.append("parallel.ds_config=ds.json")
    done = command(*words, TRAIN, "--config", config, *overrides, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    world_size = 1 if launcher == "python" else 2
    assert f"strategy {strategy} on {world_size} rank(s)" in done.stdout
    metrics = lines(tmp_path / "runs" / "run" / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [1, 2, 3]
    golden = (ROOT / "tests" / "golden" / "tiny_single.txt").read_text(encoding="utf-8").split()
    assert metrics[0]["loss"] == pytest.approx(float(golden[1]), rel=1e-4), "the first loss is that of one process"
    assert "Traceback" not in done.stderr
    if strategy == "zero":
        facts = json.loads((tmp_path / "runs" / "run" / "environment.json").read_text())
        kept = (tmp_path / "runs" / "run" / "ds_config.json").read_bytes()
        assert kept == (tmp_path / "ds.json").read_bytes()
        assert facts["ds_config_sha256"] == hashlib.sha256(kept).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "number"),
    [
        ("torchrun", signal.SIGINT),
        pytest.param("torchrun", signal.SIGKILL, marks=pytest.mark.exhaustive),
        pytest.param("torchrun", signal.SIGHUP, marks=pytest.mark.exhaustive),
        pytest.param("deepspeed", signal.SIGKILL, marks=pytest.mark.exhaustive),
    ],
)
def test_stopped_under_a_launcher(tmp_path: Path, config: Path, launcher: str, number: signal.Signals) -> None:
    """The terminal sends it to every process at once, torchrun passes it on to groups of them; kill -9 meets it alone."""
    words = [*LAUNCHERS[launcher], TRAIN, "--config", config, "parallel.strategy=fsdp", "train.steps=1000000"]
    words = [str(word).replace("{port}", str(free_port())) for word in [*words, "data.workers=1"]]
    metrics = tmp_path / "runs" / "run" / "metrics.jsonl"
    with (tmp_path / "out.txt").open("w") as out:
        process = subprocess.Popen(
            [str(w) for w in words], cwd=tmp_path, stdout=out, stderr=out, start_new_session=True
        )
    while not metrics.exists() or metrics.read_text().count("\n") < 3:
        assert process.poll() is None, (tmp_path / "out.txt").read_text()
        time.sleep(0.1)
    if number == signal.SIGKILL:
        process.kill()
    else:
        os.killpg(process.pid, number)
    assert process.wait(timeout=300) != 0
    with locked(tmp_path / "runs" / "run" / "run.lock"):  # the ranks have let go of it
        reached = lines(metrics)[-1]["step"]
    assert f"stopped at step {reached} of 1000000; run the same command again" in (tmp_path / "out.txt").read_text()
    assert (tmp_path / "runs" / "run" / "checkpoints" / f"step-{reached:08d}" / "MANIFEST.json").is_file()


@pytest.mark.parametrize("script", [TRAIN, EVALUATE], ids=lambda p: p.stem)
def test_help_and_mistakes_do_not_wait_for_torch(tmp_path: Path, config: Path, script: Path) -> None:
    commands = [["--help"], ["--config", config, "optim.learning_rate=1"], ["--config", "no.yaml"]]
    if script == EVALUATE:
        commands = [[*words, "--checkpoint", "runs/run"] for words in commands]
    done = light_commands(script, commands, tmp_path)
    assert [(code, heavy) for code, _, heavy in done] == [(0, []), (2, []), (2, [])]


def test_dry_run_prints_config_and_plan_without_torch(tmp_path: Path, config: Path) -> None:
    ((code, said, heavy),) = light_commands(TRAIN, [["--config", config, "--dry-run", "optim.lr=1e-4"]], tmp_path)
    assert (code, heavy) == (0, [])
    assert yaml.safe_load(said)["optim"]["lr"] == 1e-4
    plan = said.splitlines()[-1]
    for named in ("22 images", "111 expressions", "6 steps an epoch", "20 steps = 3.33 epochs", "runs/run"):
        assert named in plan
    assert list(tmp_path.iterdir()) == [], "nothing is written"


def refused(done: Done, *words: str) -> None:
    """Exit code 2, one message, no traceback, on one rank of all."""
    assert set(done.codes) == {2}, done.outputs
    everything = "".join(done.outputs)
    assert everything.count("error: ") == 1, everything
    assert "Traceback" not in everything
    message = everything[everything.index("error: ") :]
    for word in words:
        assert word in message


def train(folder: Path, config: Path, *arguments: str, **options) -> Done:
    return run(TRAIN, ["--config", str(config), *arguments], folder, **options)


def test_paths_that_are_wrong(tmp_path: Path, config: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("a")
    refused(train(tmp_path, tmp_path / "no.yaml"), "no config at", "no.yaml", "configs/")
    refused(train(tmp_path, config, "data.train=nowhere"), "no shard set at 'nowhere': the folder does not exist")
    refused(train(tmp_path, config, "data.train=empty"), "no shard set at 'empty': the folder is empty")
    refused(train(tmp_path, config, "data.train=other"), "no shard set at 'other': it has no manifest.json")
    refused(train(tmp_path, config, "data.train=other/a.txt"), "no shard set at 'other/a.txt': it is not a folder")
    refused(train(tmp_path, config, "data.train=null"), "data.train is not set", "tools/shard.py build")
    refused(train(tmp_path, config, "data.val=null", "evaluate.every=2"), "evaluate.every is set and data.val is not")
    refused(train(tmp_path, config, "data.val=nowhere", "evaluate.every=2"), "no shard set at 'nowhere'")
    refused(train(tmp_path, config, "run.dir=other/a.txt"), "cannot write into the run's folder 'other/a.txt/run'")
    refused(
        train(tmp_path, config, "checkpoint.resume=nowhere"),
        "checkpoint.resume='nowhere' does not exist",
        "checkpoint.resume=auto",
    )
    refused(train(tmp_path, config, "checkpoint.resume=other"), "no finished checkpoint in 'other'")
    refused(
        train(tmp_path, config, "checkpoint.init_from=nowhere"),
        "checkpoint.init_from='nowhere' does not exist",
        "checkpoint.init_from=null",
    )
    refused(
        train(tmp_path, config, "checkpoint.init_from=no.safetensors"),
        "checkpoint.init_from='no.safetensors' does not exist",
    )
    refused(train(tmp_path, config, "checkpoint.text_weights=other/a.txt"), "other/a.txt' ")


def test_words_that_are_wrong(tmp_path: Path, config: Path) -> None:
    refused(
        train(tmp_path, config, "optim.learning_rate=1"), "unknown key 'optim.learning_rate' (command line); did you"
    )
    refused(
        train(tmp_path, config, "--steps", "3"), "unknown option '--steps' (command line); see launch/train.py --help"
    )
    refused(train(tmp_path, config, "--dry"), "unknown option '--dry'")
    refused(train(tmp_path, config, "fast"), "cannot read 'fast': an override is section.key=value")
    refused(train(tmp_path, config, "data.expressions_per_image=7"), "is more than 22 of 22 records have", "at most 6")
    done = train(tmp_path, config, "--local_rank", "x")
    assert done.codes == [2]
    assert "--local_rank/--local-rank: invalid int value: 'x'" in done.output


def test_environments_that_are_wrong(tmp_path: Path, config: Path) -> None:
    def with_environment(*arguments: str, **environ: str) -> Done:
        return train(tmp_path, config, *arguments, environ=environ)

    refused(with_environment(RANK="first"), "RANK='first' is not a whole number")
    refused(with_environment(WORLD_SIZE="two"), "WORLD_SIZE='two' is not ")
    refused(with_environment("--dry-run", WORLD_SIZE="two"), "WORLD_SIZE='two' is not a whole number")
    refused(with_environment(RANK="3", WORLD_SIZE="2"), "RANK=3 does not fit WORLD_SIZE=2")
    refused(with_environment(LOCAL_RANK="-1"), "LOCAL_RANK='-1' is not a whole number")
    refused(
        with_environment("--local_rank=1", LOCAL_RANK="0"), "--local_rank=1 contradicts the environment's LOCAL_RANK=0"
    )
    on_three = with_environment("--dry-run", "parallel.strategy=ddp", WORLD_SIZE="3")
    refused(on_three, "data.images_per_batch=4 cannot be split among 3 ranks")


def test_world_sizes_that_do_not_fit(tmp_path: Path, config: Path) -> None:
    """Wrong on all ranks: rank 0 says it, and lets the others know."""

    def on_two(*arguments: str) -> Done:
        done = run(TRAIN, ["--config", str(config), *arguments], tmp_path, world_size=2)
        assert done.outputs[1] in ("", done.outputs[0]) or "run's folder" in done.output
        return Done(done.codes, done.outputs[:1])

    refused(on_two(), "parallel.strategy=single runs on one rank and was launched on 2")
    ddp = "parallel.strategy=ddp"
    refused(on_two(ddp, "data.images_per_batch=5"), "cannot be split among 2 ranks")
    refused(
        on_two(ddp, "train.accumulate=4"),
        "train.accumulate=4 does not divide a rank's 2 images (data.images_per_batch=4 over 2 ranks)",
    )
    refused(on_two(ddp, "run.dir=/dev/null"), "cannot write into the run's folder")


def test_ranks_with_different_configs_end_at_once(tmp_path: Path, tiny_shards: Path, config: Path) -> None:
    """Such as a config file that was changed on one node only; without the check they would wait for each other."""
    folders = [tmp_path / str(rank) for rank in range(2)]
    for folder, seed in zip(folders, (0, 1), strict=True):
        folder.mkdir()
        values = {**tiny_config(tiny_shards), "parallel": {"strategy": "ddp"}, "run": {"seed": seed}}
        (folder / "c.yaml").write_text(yaml.safe_dump(values))
    both = 'import os, runpy, sys; os.chdir(os.environ["RANK"])\n'
    script = tmp_path / "train.py"
    script.write_text(f"{both}runpy.run_path({str(TRAIN)!r}, run_name='__main__')\n")
    done = wait(start(script, ["--config", "c.yaml"], tmp_path, world_size=2), tmp_path)
    refused(done, "config run.seed: rank 0 has 0, rank 1 has 1")


@pytest.fixture
def wrong_on_rank_1(tmp_path: Path) -> Path:
    script = tmp_path / "train.py"
    script.write_text(
        "import os, runpy, sys\n"
        "sys.argv += ['optim.lrr=1'] if os.environ['RANK'] == '1' else []\n"
        f"runpy.run_path({str(TRAIN)!r}, run_name='__main__')\n"
    )
    return script


@pytest.mark.slow
def test_a_rank_that_is_wrong_alone_ends_all_of_them(tmp_path: Path, config: Path, wrong_on_rank_1: Path) -> None:
    """Rank 0 would wait for it for `parallel.timeout_s`, ten minutes."""
    arguments = ["--config", str(config), "parallel.strategy=ddp"]
    done = wait(start(wrong_on_rank_1, arguments, tmp_path, world_size=2), tmp_path)
    refused(
        done,
        f"error: rank 1 on {socket.gethostname()}: unknown key 'optim.lrr' (command line); did you mean 'optim.lr'?",
    )
    assert done.outputs[1] == ""


@pytest.mark.slow
def test_a_rank_that_is_wrong_alone_under_torchrun(tmp_path: Path, config: Path, wrong_on_rank_1: Path) -> None:
    words = [*LAUNCHERS["torchrun"], wrong_on_rank_1, "--config", config, "parallel.strategy=ddp"]
    done = command(*words, cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1, done.stderr
    words = (
        f"error: rank 1 on {socket.gethostname()}: unknown key 'optim.lrr' (command line); did you mean 'optim.lr'?\n"
    )
    assert words in done.stderr


def test_an_override_behind_the_launchers_local_rank_counts(tmp_path: Path, config: Path) -> None:
    done = train(tmp_path, config, "train.steps=2", "--local-rank", "0", "run.name=late", "train.steps=1")
    assert done.codes == [0], done.output
    assert [line["step"] for line in lines(tmp_path / "runs" / "late" / "metrics.jsonl")] == [1]
