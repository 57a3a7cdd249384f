"""A run that was stopped, anywhere, ends as the one that was not: every loss and every batch, bit for bit."""

import json
import os
import signal
from pathlib import Path

import pytest
from tiny_run import TRAIN, Done, Raise, assert_curves_are_metrics, lines, losses, run, start, wait, write_config

from mres.supervise.stop_request import INTERRUPTED_EXIT, PREEMPTED_EXIT

STEPS, STOP = 14, 8  # 6 steps an epoch: the stop is in the middle of the second

pytestmark = pytest.mark.slow


def train(folder: Path, config: Path, name: str, *overrides: str, **options) -> Done:
    arguments = ["--config", str(config), f"run.name={name}", f"train.steps={STEPS}", *overrides]
    return run(TRAIN, arguments, folder, **options)


@pytest.fixture
def config(tmp_path: Path, tiny_shards: Path) -> Path:
    return write_config(tmp_path, tiny_shards)


def assert_same_course(one: Path, other: Path) -> None:
    assert losses(one) == losses(other)
    assert [line["step"] for line in losses(one)] == list(range(1, STEPS + 1))
    assert (one / "batches.jsonl").read_bytes() == (other / "batches.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("strategy", "world_size", "received", "code"),
    [
        pytest.param("single", 1, signal.SIGTERM, PREEMPTED_EXIT, marks=pytest.mark.exhaustive),
        pytest.param("single", 1, signal.SIGHUP, PREEMPTED_EXIT, marks=pytest.mark.exhaustive),
        pytest.param("ddp", 2, signal.SIGINT, INTERRUPTED_EXIT, marks=pytest.mark.exhaustive),
        ("fsdp", 2, signal.SIGUSR2, PREEMPTED_EXIT),
    ],
)
def test_stopped_by_a_signal_in_the_middle_of_an_epoch(
    tmp_path: Path, config: Path, strategy: str, world_size: int, received: signal.Signals, code: int
) -> None:
    chosen = f"parallel.strategy={strategy}"
    whole = train(tmp_path, config, "whole", chosen, world_size=world_size)
    assert whole.codes == [0] * world_size, whole.output

    stop = Raise(STOP, received, rank=world_size - 1)  # one rank alone learns of it
    first = train(tmp_path, config, "stopped", chosen, world_size=world_size, raising=stop)
    assert first.codes[-1] == code, first.output
    assert first.codes[:-1] == [PREEMPTED_EXIT] * (world_size - 1), "the others stop for its sake"
    reached = STOP + 1  # the signal came while step 8 was logged: agreed at the next step's boundary
    assert f"stopped at step {reached} of {STEPS}; run the same command again to go on" in first.output
    assert lines(tmp_path / "runs" / "stopped" / "metrics.jsonl")[-1]["step"] == reached

    second = train(tmp_path, config, "stopped", chosen, "data.workers=1", world_size=world_size)
    assert second.codes == [0] * world_size, second.output
    assert f"going on at step {reached} from runs/stopped/checkpoints/step-{reached:08d}" in second.output
    assert_same_course(tmp_path / "runs" / "whole", tmp_path / "runs" / "stopped")

    third = train(tmp_path, config, "stopped", chosen, world_size=world_size)
    assert third.codes == [0] * world_size
    assert f"runs/stopped is complete: {STEPS} steps" in third.output


def test_killed_between_two_checkpoints(tmp_path: Path, config: Path) -> None:
    """What was done since the last checkpoint is taken back and done again."""
    assert train(tmp_path, config, "whole").codes == [0]
    due = "checkpoint.every=5", "checkpoint.async_save=false"
    killed = train(tmp_path, config, "killed", *due, raising=Raise(STOP, signal.SIGKILL))
    assert killed.codes == [-signal.SIGKILL]
    run_dir = tmp_path / "runs" / "killed"
    assert lines(run_dir / "metrics.jsonl")[-1]["step"] == STOP - 1
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "epoch"')  # as a kill in the middle of a write leaves it
    again = train(tmp_path, config, "killed", *due)
    assert again.codes == [0], again.output
    assert "going on at step 5" in again.output
    assert_same_course(tmp_path / "runs" / "whole", run_dir)


def test_the_curves_have_each_step_once(tmp_path: Path, config: Path) -> None:
    """Killed behind a checkpoint, preempted, and run to its end: TensorBoard shows what one start would have shown."""
    due = "checkpoint.every=5", "checkpoint.async_save=false"
    assert train(tmp_path, config, "run", *due, raising=Raise(STOP, signal.SIGKILL)).codes == [-signal.SIGKILL]
    assert train(tmp_path, config, "run", *due, raising=Raise(STOP + 1, signal.SIGUSR2)).codes == [PREEMPTED_EXIT]
    assert train(tmp_path, config, "run", *due).codes == [0]
    run_dir = tmp_path / "runs" / "run"
    assert len(list((run_dir / "tensorboard").iterdir())) == 3
    assert [line["step"] for line in losses(run_dir)] == list(range(1, STEPS + 1))
    assert_curves_are_metrics(run_dir)


@pytest.mark.parametrize(
    ("step", "received", "code"),
    [
        (7, signal.SIGTERM, PREEMPTED_EXIT),
        pytest.param(STEPS, signal.SIGTERM, PREEMPTED_EXIT, marks=pytest.mark.exhaustive),
        pytest.param(7, signal.SIGKILL, -signal.SIGKILL, marks=pytest.mark.exhaustive),
    ],
)
def test_stopped_in_an_evaluation(tmp_path: Path, config: Path, step: int, received: signal.Signals, code: int) -> None:
    """What was trained is saved, and who goes on makes that evaluation first."""
    due = "evaluate.every=7", "checkpoint.every=7", "checkpoint.async_save=false"
    assert train(tmp_path, config, "whole", *due).codes == [0]
    first = train(tmp_path, config, "stopped", *due, raising=Raise(step, received, phase="evaluate"))
    assert first.codes == [code], first.output
    run_dir = tmp_path / "runs" / "stopped"
    evaluations = run_dir / "evaluations.jsonl"
    assert step not in [line["step"] for line in (lines(evaluations) if evaluations.exists() else [])]
    assert (run_dir / "checkpoints" / f"step-{step:08d}" / "MANIFEST.json").is_file()
    assert (f"stopped at step {step} of {STEPS}" in first.output) is (code == PREEMPTED_EXIT)

    second = train(tmp_path, config, "stopped", *due)
    assert second.codes == [0], second.output
    assert_same_course(tmp_path / "runs" / "whole", run_dir)
    assert evaluations.read_bytes() == (tmp_path / "runs" / "whole" / "evaluations.jsonl").read_bytes()
    assert f"runs/stopped is complete: {STEPS} steps" in train(tmp_path, config, "stopped", *due).output


@pytest.mark.exhaustive
@pytest.mark.parametrize("received", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_in_the_last_save_changes_nothing(tmp_path: Path, config: Path, received: signal.Signals) -> None:
    done = train(tmp_path, config, "run", raising=Raise(STEPS, received, phase="checkpoint"))
    assert done.codes == [0], done.output
    assert (tmp_path / "runs/run/checkpoints" / f"step-{STEPS:08d}" / "MANIFEST.json").is_file()


def test_ctrl_c_from_outside_saves_and_says_how_to_go_on(tmp_path: Path, config: Path) -> None:
    processes = start(TRAIN, ["--config", str(config), "train.steps=1000000"], tmp_path)
    metrics = tmp_path / "runs" / "run" / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 3:
        assert processes[0].is_alive(), (tmp_path / "out-0.txt").read_text()
        processes[0].join(0.05)
    assert processes[0].pid is not None
    os.kill(processes[0].pid, signal.SIGINT)
    done = wait(processes, tmp_path)
    assert done.codes == [INTERRUPTED_EXIT]
    assert "Traceback" not in done.output
    last = done.output.strip().splitlines()[-1]
    reached = lines(metrics)[-1]["step"]
    assert last == f"stopped at step {reached} of 1000000; run the same command again to go on"
    assert (tmp_path / "runs" / "run" / "checkpoints" / f"step-{reached:08d}" / "MANIFEST.json").is_file()


def test_starting_again_on_purpose(tmp_path: Path, config: Path) -> None:
    assert train(tmp_path, config, "a").codes == [0]
    before = losses(tmp_path / "runs" / "a")
    again = train(tmp_path, config, "a", "checkpoint.resume=never")
    assert again.codes == [0], again.output
    assert losses(tmp_path / "runs" / "a") == before
    stopped = train(tmp_path, config, "b", "checkpoint.resume=never", raising=Raise(3, signal.SIGTERM))
    assert "run the same command again with checkpoint.resume=auto to go on" in stopped.output


@pytest.mark.parametrize(
    "again_from", ["never", pytest.param("runs/run/checkpoints/step-00000005", marks=pytest.mark.exhaustive)]
)
def test_what_came_before_a_new_start_is_over_with_it(tmp_path: Path, config: Path, again_from: str) -> None:
    """Killed before its first save, it must not go on from what the old one had come to."""
    due = ["checkpoint.every=5", "checkpoint.async_save=false", "checkpoint.keep=9"]
    assert train(tmp_path, config, "run", *due).codes == [0]
    reached = 5 if again_from != "never" else 0
    killed = train(
        tmp_path, config, "run", *due, f"checkpoint.resume={again_from}", raising=Raise(reached + 3, signal.SIGKILL)
    )
    assert killed.codes == [-signal.SIGKILL], killed.output
    again = train(tmp_path, config, "run", *due)
    assert again.codes == [0], again.output
    assert ("going on at step" in again.output) == (reached > 0)
    assert f"going on at step {STEPS}" not in again.output
    assert [line["step"] for line in losses(tmp_path / "runs" / "run")] == list(range(1, STEPS + 1))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["run.seed=1"], "run.seed was 0 and is now 1"),
        (["data.images_per_batch=2"], "the images consumed (data.images_per_batch) was "),
        (["model.decoder_heads=4"], "is of another model: model.decoder_heads was 2 and is now 4"),
    ],
)
def test_another_run_cannot_go_on(tmp_path: Path, config: Path, changes: list[str], words: str) -> None:
    assert train(tmp_path, config, "run", raising=Raise(3, signal.SIGTERM)).codes == [PREEMPTED_EXIT]
    resolved = (tmp_path / "runs" / "run" / "config.yaml").read_text()
    done = train(tmp_path, config, "run", *changes)
    assert done.codes == [2]
    assert words in done.output
    assert "Traceback" not in done.output
    assert (tmp_path / "runs" / "run" / "config.yaml").read_text() == resolved, "a refused command leaves the run alone"
    assert json.loads((tmp_path / "runs" / "run" / "environment.json").read_text())["world_size"] == 1
