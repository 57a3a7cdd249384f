"""A disk that fills up while a run trains, and under evaluation, report and prediction: one line, nothing half-written, or, where
the run may, training goes on and what waited is written when there is room."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from commands import command
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import EVALUATE, TRAIN, Done, lines, run, write_config

pytestmark = pytest.mark.slow
CALLBACK = """
from pathlib import Path
from mres.train.callback import Callback

class FillsUp(Callback):
    def on_log(self, metrics):
        filler = Path(self.config.run.dir) / "filler"
        if metrics["step"] == 3:
            with filler.open("ab", buffering=0) as file:
                for size in (1 << 16, 1):
                    try:
                        while True:
                            file.write(bytes(size))
                    except OSError:
                        pass
        if metrics["step"] == 8:
            filler.unlink()
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this user may mount no small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> None:
    with (disk / "filler").open("ab", buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass


def train(folder: Path, shards: Path, disk: Path, *more: str) -> Done:
    (folder / "filling.py").write_text(CALLBACK)
    config = write_config(folder, shards)
    given = ["--config", str(config), f"run.dir={disk}", "run.name=r", "train.steps=10", "checkpoint.every=2"]
    return run(TRAIN, [*given, *more], folder)


def test_training_goes_on_and_writes_what_waited(tmp_path: Path, tiny_shards: Path, disk: Path) -> None:
    filling = f"train.callbacks=[{tmp_path}/filling.py:FillsUp]"
    done = train(tmp_path, tiny_shards, disk, "checkpoint.on_failure=continue", filling)
    assert done.codes == [0], done.output
    assert [line["step"] for line in lines(disk / "r" / "metrics.jsonl")] == list(range(1, 11))
    assert [line["step"] for line in lines(disk / "r" / "batches.jsonl")] == list(range(1, 11))
    shown = EventAccumulator(str(disk / "r" / "tensorboard")).Reload().Scalars("loss")
    assert [event.step for event in shown] == list(range(1, 11))
    assert f"the run goes on without new entries in '{disk}/r/metrics.jsonl', which wait: No space left" in done.output
    assert f"'{disk}/r/metrics.jsonl' takes entries again: " in done.output
    assert "training goes on, the next one is tried" in done.output
    assert "Traceback" not in done.output


def test_otherwise_it_ends_with_one_line_and_goes_on_from_there(tmp_path: Path, tiny_shards: Path, disk: Path) -> None:
    done = train(tmp_path, tiny_shards, disk, f"train.callbacks=[{tmp_path}/filling.py:FillsUp]")
    assert done.codes == [2], done.output
    (error,) = [line for line in done.output.splitlines() if line.startswith("error: ")]
    # A line of metrics, or the checkpoint that is being written.
    assert "No space left on device" in error or "0 MB were free there" in error
    assert str(disk / "r") in error
    assert "Traceback" not in done.output
    written = [path for path in (disk / "r").rglob("*") if path.is_file() and "heartbeat" not in path.parts]
    before = {path: path.read_bytes() for path in written if path.suffix in (".jsonl", ".yaml", ".json")}
    again = train(tmp_path, tiny_shards, disk)
    assert again.codes == [2], again.output
    assert "No space left on device" in again.output or "0 MB were free there" in again.output
    assert "Traceback" not in again.output
    for path, content in before.items():  # a save that was not finished may have left room for a start
        if path.suffix != ".jsonl":
            assert yaml.safe_load(path.read_text()), path
        elif path.read_bytes() != content:
            found = lines(path)
            assert [line["step"] for line in found] == list(range(1, 1 + len(found)))
    (disk / "filler").unlink()
    assert train(tmp_path, tiny_shards, disk).codes == [0]
    assert [line["step"] for line in lines(disk / "r" / "metrics.jsonl")] == list(range(1, 11))


def test_evaluation_report_and_prediction(tmp_path: Path, tiny_shards: Path, disk: Path) -> None:
    assert train(tmp_path, tiny_shards, disk).codes == [0]
    given = ["--config", str(tmp_path / "tiny.yaml"), "--checkpoint", str(disk / "r"), f"run.dir={disk}", "run.name=r"]
    assert run(EVALUATE, given, tmp_path).codes == [0]
    assert command("tools/report.py", disk / "r").returncode == 0
    Image.new("RGB", (60, 40)).save(disk / "photo.png")
    before = {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()}
    fill(disk)
    evaluated = run(EVALUATE, [*given, "evaluate.threshold=0.4"], tmp_path)
    report = command("tools/report.py", disk / "r")
    words = ["--image", disk / "photo.png", "--text", "a", "--out", disk / "o.png"]
    predicted = command("tools/predict.py", "--checkpoint", disk / "r", *words)
    codes = [*evaluated.codes, report.returncode, predicted.returncode]
    outputs = [evaluated.output, report.stderr, predicted.stderr]
    assert codes == [2, 2, 2], outputs
    for output, name in zip(outputs, ("r/results.json", "r/report/index.html", "o"), strict=True):
        assert f"error: No space left on device: '{disk}/{name}" in output
        assert "Traceback" not in output
    (disk / "filler").unlink()
    assert {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()} == before
