"""A conversion that was killed goes on; its memory does not grow with the model."""

import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from saving import CONTEXT, in_process
from tensors import same_bits
from tensors import workspace as workspace_at

from mres.checkpoint.opening import open_checkpoint
from mres.convert.convert import convert
from mres.formats.dcp import DcpSource
from mres.formats.weights import read_tensor
from mres.formats.workspace import HashedFile

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
NUM_TENSORS = 12


@pytest.fixture
def source(tmp_path: Path) -> Path:
    state = {f"model.{number}": torch.randn(50, 40 + number) for number in range(NUM_TENSORS)}
    dcp.save(state, checkpoint_id=tmp_path / "source", no_dist=True)
    return tmp_path / "source"


def killed_at_read(number: int, source: Path, out: Path, to: str) -> None:
    """SIGKILL comes when tensor `number` is read; what was written is noted every 20 kB."""
    from mres.formats import files_together, workspace

    reads = 0
    read = DcpSource.read_into

    def counted(self: DcpSource, name: str, target: memoryview) -> None:
        nonlocal reads
        reads += 1
        if reads == number:
            os.kill(os.getpid(), signal.SIGKILL)
        read(self, name, target)

    workspace.NOTE_EVERY_BYTES = files_together.NOTE_EVERY_BYTES = 20_000
    files_together._BYTES_A_SYNC = 0
    DcpSource.read_into = counted  # type: ignore[method-assign]
    convert(source, out, to, max_shard_bytes=40_000)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["safetensors", "dcp", "zero2"])
def test_the_same_call_goes_on_after_a_kill(
    source: Path, to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # While tensors are written, and while all are compared.
    for number in (7, NUM_TENSORS + 5):
        out = tmp_path / f"out{number}"
        process = CONTEXT.Process(target=killed_at_read, args=(number, source, out, to))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        assert not out.exists()
        convert(source, out, to, max_shard_bytes=40_000)
        assert "are there already" in capsys.readouterr().err
        given, found = open_checkpoint(source).source, open_checkpoint(out).source
        assert all(same_bits(read_tensor(given, name), read_tensor(found, name)) for name in given.specs)
    assert not list(tmp_path.glob("*.incomplete"))


def test_what_was_left_of_another_conversion_is_not_taken_up(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = CONTEXT.Process(target=killed_at_read, args=(NUM_TENSORS, source, tmp_path / "out", "safetensors"))
    process.start()
    process.join(60)
    assert (tmp_path / "out.incomplete").exists()
    shutil.rmtree(source)
    dcp.save({"model.0": torch.zeros(3)}, checkpoint_id=source, no_dist=True)
    convert(source, tmp_path / "out", "safetensors", max_shard_bytes=40_000)
    assert "are there already" not in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]


def peak_growth(source: Path, out: Path, to: str) -> float:
    """MB by which converting raises this process's peak, when everything has been imported and used once."""
    small = out.with_name(f"small-{to}")
    dcp.save({"model.w": torch.ones(1000)}, checkpoint_id=small, no_dist=True)
    convert(small, small.with_name(f"{small.name}-out"), to)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    convert(source, out, to)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3


@pytest.mark.slow
@pytest.mark.parametrize("to", ["safetensors", "dcp", "zero3"])
def test_memory_is_of_the_largest_tensor_not_of_the_model(tmp_path: Path, to: str) -> None:
    state = {f"model.{number}": torch.ones(2_000_000) for number in range(18)}  # 8 MB each, 144 MB
    dcp.save(state, checkpoint_id=tmp_path / "source", no_dist=True)
    assert in_process(peak_growth, tmp_path / "source", tmp_path / "out", to) < 60


def test_a_line_that_a_kill_cut_off_costs_nothing_of_what_comes_after(tmp_path: Path) -> None:
    def written(key: str, size: int) -> list[tuple[str, Callable[[HashedFile], None]]]:
        return [(key, lambda file: file.write(bytes(size)) and None)]

    root = tmp_path / "out.incomplete"
    workspace_at(root).write_file("one", iter(written("a", 100)))
    with (root / "journal.jsonl").open("a") as journal:
        journal.write('{"file": "two", "key": "b", "off')
    again = workspace_at(root)
    assert again.taken_up == 100
    again.write_file("two", iter(written("b", 50)))
    assert workspace_at(root).taken_up == 150
    assert workspace_at(root, "another test").taken_up == 0
