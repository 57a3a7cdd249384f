"""Conversions: bit for bit, all or nothing, and of use to everything that takes a checkpoint."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run
import torch
from safetensors import safe_open
from saving import CONTEXT, in_process, killed_at, limit_file_size
from torch import Tensor

from mres.checkpoint import store
from mres.checkpoint.opening import open_weights
from mres.checkpoint.store import CheckpointError
from mres.convert.convert import convert
from mres.formats.dcp import DcpSource
from mres.formats.weights import read_tensor

LAST = "step-00000002"
TOOL = tiny_run.ROOT / "tools" / "convert.py"


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def weights(path: Path) -> dict[str, Tensor]:
    return dict(open_weights(path).weights)


@pytest.mark.parametrize("name", ["single", "tied"])
def test_there_and_back_is_bit_for_bit(runs: Path, name: str, tmp_path: Path) -> None:
    exported = convert(runs / name, tmp_path / "export", "safetensors")
    back = convert(exported / "model.safetensors", tmp_path / "back", "dcp")
    again = convert(tmp_path / "back", tmp_path / "again", "safetensors")
    assert (exported, back) == (tmp_path / "export", tmp_path / "back" / LAST)
    original = dict(open_weights(runs / name / "checkpoints" / LAST).weights)
    assert same(original, dict(open_weights(back).weights))
    assert same(original, weights(again))
    assert any("low_filter" in key for key in original)
    assert any("high_filter" in key for key in original) == (name == "single"), (
        "one tensor under two names: stored once"
    )
    for folder in (exported, back):
        found = store.verify(folder)
        assert (found.step, found.weights_only) == (2, True)
        assert (folder / "config.yaml").read_text() == (runs / name / "checkpoints" / LAST / "config.yaml").read_text()


def test_the_file_says_what_it_is(runs: Path, tmp_path: Path) -> None:
    folder = convert(runs / "single" / "checkpoints" / "step-00000001", tmp_path / "export", "safetensors")
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        header = file.metadata()
    assert (header["format"], header["step"]) == ("pt", "1")
    assert header["mres"]
    assert "text_vocab_size: 1024" in header["config"]


def test_from_dcp_to_dcp_the_optimizer_comes_along(runs: Path, tmp_path: Path) -> None:
    source = runs / "tied" / "checkpoints" / LAST
    folder = convert(source, tmp_path / "run" / "checkpoints", "dcp")
    found = store.locate(tmp_path / "run")
    assert found.folder == folder
    assert found.state == store.verify(source).state
    one, other = DcpSource(source), DcpSource(folder)
    assert any(name.endswith(".exp_avg_sq") for name in one.specs)
    assert same(*({name: read_tensor(source, name) for name in source.specs} for source in (one, other)))


def test_weights_alone_are_nothing_to_go_on_from(runs: Path, tmp_path: Path) -> None:
    convert(runs / "single", tmp_path / "export", "safetensors")
    convert(tmp_path / "export", tmp_path / "run" / "checkpoints", "dcp")
    for path in (tmp_path / "run", tmp_path / "run" / "checkpoints" / LAST, tmp_path / "export"):
        with pytest.raises(CheckpointError, match=r"holds weights only.*checkpoint.init_from="):
            store.locate(path)
        assert store.locate(path, optimizer=False).step == 2
    with pytest.raises(CheckpointError, match="holds weights only"):
        list(store.newest(tmp_path / "run" / "checkpoints"))


def test_what_exists_is_replaced_only_on_demand(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    convert(runs / "single", out, "safetensors")  # an empty folder is no obstacle
    with pytest.raises(CheckpointError, match=r"exists and is not empty; .*--overwrite"):
        convert(runs / "tied", out, "dcp")
    convert(runs / "tied", out, "dcp", overwrite=True)
    assert [path.name for path in out.iterdir()] == [LAST]
    convert(runs / "single", out, "safetensors", overwrite=True)
    assert "high_filter.ffn.0.weight" in weights(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_overwrite_removes_no_other_things(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "cat.jpg").write_text("")
    run = Path(shutil.copytree(runs / "single", tmp_path / "run"))
    for out in (folder, folder / "cat.jpg", run, run / "checkpoints"):
        with pytest.raises(CheckpointError, match="is not what a conversion makes"):
            convert(runs / "tied", out, "safetensors", overwrite=True)
    export = convert(runs / "single", tmp_path / "export", "safetensors")
    with pytest.raises(CheckpointError, match="lie inside each other"):
        convert(export, export, "dcp", overwrite=True)
    with pytest.raises(CheckpointError, match="lie inside each other"):
        convert(run / "checkpoints" / LAST, run / "checkpoints" / LAST / "export", "safetensors")
    assert store.locate(run).step == 2


def test_bad_sources_are_named(runs: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs / "single" / "checkpoints" / LAST, tmp_path / "damaged"))
    os.truncate(run / "state.json", 3)
    for name, message in (
        ("nowhere", "no such checkpoint or run"),
        ("damaged", "state.json is damaged"),
        ("no.safetensors", "no such"),
    ):
        with pytest.raises(CheckpointError, match=message):
            convert(tmp_path / name, tmp_path / "out", "safetensors")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["safetensors", "dcp"])
def test_a_disk_that_takes_no_more_leaves_nothing_behind(runs: Path, to: str, tmp_path: Path) -> None:
    export = convert(runs / "single", tmp_path / "export", "safetensors")
    with pytest.raises(CheckpointError, match=r"out' was not written: .*; nothing of it was left behind"):
        in_process(limit_file_size, 100_000, convert, export, tmp_path / "out", to)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_room_is_looked_for_first(runs: Path, small_disk: Path | None) -> None:
    if small_disk is None:
        pytest.skip("only root can mount a small disk")
    with pytest.raises(CheckpointError, match=r"there are 1 MB free in '.*' and \d MB are needed"):
        convert(runs / "single", small_disk / "out", "dcp")
    assert not list(small_disk.iterdir())


def overwrite(source: Path, out: Path, to: str) -> None:
    convert(source, out, to, overwrite=True)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["safetensors", "dcp"])
def test_a_kill_leaves_the_old_the_new_or_nothing(runs: Path, to: str, tmp_path: Path) -> None:
    export = convert(runs / "single", tmp_path / "export", "safetensors")
    out, seen = tmp_path / "out", set()
    convert(runs / "tied", out, "safetensors")
    for kill_at in range(1, 99, 6):
        process = CONTEXT.Process(target=killed_at, args=(kill_at, overwrite, export, out, to))
        process.start()
        process.join(60)
        if out.exists():
            assert store.locate(out, optimizer=False).step == 2
            seen.add("high_filter.ffn.0.weight" in weights(out))
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert seen == {False, True}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "out"]


def tool(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """The command, which at its end says whether it loaded torch."""
    code = (
        "import atexit, runpy, sys; atexit.register(lambda: print('torch' in sys.modules)); "
        f"sys.argv = {[str(a) for a in (TOOL, *arguments)]}; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "out", "--to", "fsdp"], "parallel.strategy=fsdp directly; --to takes safetensors, dcp, zero1"),
        (["run", "out", "--to", "onnx"], "--to 'onnx': it takes safetensors, dcp, zero1, zero2, zero3"),
        (["run", "out", "--to", "dcp", "--world-size", "4"], "--world-size has no effect on --to dcp"),
        (["run", "out", "--to", "zero2", "--world-size", "0"], "--world-size 0 must be at least 1"),
        (["run", "out", "--to", "dcp", "--max-shard-size", "5GB"], "--max-shard-size has no effect on --to dcp"),
        (["run", "out", "--to", "safetensors", "--max-shard-size", "5 TB"], "--max-shard-size '5 TB' is no size"),
        (["run", "out", "--to", "dcp"], "no such checkpoint or run: 'run'"),
        (["/tmp", "/", "--to", "dcp"], "'/' exists and is not empty"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str) -> None:
    done = tool(*arguments)
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


def test_help_is_quick() -> None:
    done = tool("--help")
    assert done.returncode == 0
    assert done.stdout.endswith("False\n")


def test_the_tool_says_where_the_outcome_is(runs: Path, tmp_path: Path) -> None:
    arguments = [str(runs / "single"), str(tmp_path / "export"), "--to", "safetensors"]
    done = tiny_run.run(TOOL, arguments, tmp_path)
    assert done.codes == [0]
    assert done.output.splitlines()[-1] == str(tmp_path / "export")
    assert "MB of memory" in done.output


def start(config: Path, folder: Path, *overrides: str) -> tuple[int, str, float | None]:
    """One step of a new run; its exit code, output and loss."""
    arguments = ["--config", str(config), "train.steps=1", "run.name=new", *overrides]
    done = tiny_run.run(tiny_run.TRAIN, arguments, folder)
    metrics = folder / "runs" / "new" / "metrics.jsonl"
    return done.codes[0], done.output, json.loads(metrics.read_text())["loss"] if metrics.exists() else None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more"), [pytest.param("single", [], marks=pytest.mark.exhaustive), ("tied", ["model.filter_shared=true"])]
)
def test_runs_start_from_converted_weights_as_from_the_run(
    runs: Path, config: Path, name: str, more: list[str], tmp_path: Path
) -> None:
    export = convert(runs / name, tmp_path / "export", "safetensors")
    convert(export, tmp_path / "back", "dcp")
    _, _, fresh = start(config, tmp_path / "fresh", *more)
    sources = [runs / name, export, export / "model.safetensors", tmp_path / "back"]
    losses = []
    for number, source in enumerate(sources):
        code, output, loss = start(config, tmp_path / str(number), *more, f"checkpoint.init_from={source}")
        assert code == 0, output
        assert "tensors (100.0 %)" in output
        losses.append(loss)
    assert losses == losses[:1] * 4
    assert losses[0] != fresh


@pytest.mark.slow
def test_a_run_goes_on_from_a_converted_checkpoint_only_with_its_optimizer(
    runs: Path, config: Path, tmp_path: Path
) -> None:
    checkpoints = tmp_path / "runs" / "new" / "checkpoints"
    convert(runs / "single", checkpoints, "dcp")
    code, output, _ = start(config, tmp_path, "train.steps=3")
    assert code == 0, output
    assert "going on at step 2 from runs/new/checkpoints/step-00000002" in output

    shutil.rmtree(checkpoints)
    convert(convert(runs / "single", tmp_path / "export", "safetensors"), checkpoints, "dcp")
    before = (tmp_path / "runs" / "new" / "metrics.jsonl").read_text()
    code, output, _ = start(config, tmp_path, "train.steps=4")
    assert code == 2
    assert "holds weights only" in output
    assert "checkpoint.init_from=runs/new/checkpoints/step-00000002 and another run.name" in output
    assert (tmp_path / "runs" / "new" / "metrics.jsonl").read_text() == before
    code, output, _ = start(config, tmp_path, "run.name=newer", f"checkpoint.resume={tmp_path / 'export'}")
    assert code == 2
    assert "holds weights only" in output


@pytest.mark.slow
def test_an_exported_folder_is_evaluated_like_the_run(runs: Path, config: Path, tmp_path: Path) -> None:
    export = convert(runs / "single", tmp_path / "export", "safetensors")
    results = []
    for number, source in enumerate((runs / "single", export)):
        arguments = ["--config", str(config), "--checkpoint", str(source), "--out", f"out{number}"]
        done = tiny_run.run(tiny_run.EVALUATE, arguments, tmp_path)
        assert done.codes == [0], done.output
        results.append((tmp_path / f"out{number}" / "results.jsonl").read_bytes())
    assert results[0] == results[1]
