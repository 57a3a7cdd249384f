"""Each machine before training: what is wrong with one is named on all, and nothing is begun."""

import os
import subprocess
import sys
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import pytest
from commands import PATIENCE_S, ROOT
from tiny_run import TRAIN, start, wait, write_config

from mres.config import load_config
from mres.errors import UserError
from mres.supervise import machine, preflight
from mres.supervise.finding import Finding
from mres.supervise.preflight import check_machine
from mres.testing import run_distributed


@pytest.fixture
def config(tmp_path: Path, tiny_shards: Path) -> Path:
    return write_config(tmp_path, tiny_shards)


def test_nothing_is_wrong_here(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [finding for finding in check_machine(load_config(config, [])) if finding.what == "/dev/shm"] == []


def test_only_the_first_rank_of_a_machine_looks(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(preflight, "traffic_of", None)
    assert check_machine(load_config(config, [])) == []


def test_limits_and_shared_memory_that_are_too_small_are_named_together(config: Path) -> None:
    code = f"""
import resource
from pathlib import Path
from mres.config import load_config
from mres.errors import UserError
from mres.supervise.preflight import check_machine
resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
try:
    check_machine(load_config(Path({str(config)!r}), ["data.workers=256", "data.prefetch=64", "data.images_per_batch=4096"]))
except UserError as error:
    print(error)
"""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=PATIENCE_S)
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["/dev/shm", "open files"], done.stdout + done.stderr
    assert "ulimit -n" in lines[1]


@pytest.mark.parametrize(
    ("visible", "driver", "seen", "level", "words"),
    [
        (None, None, 0, "ok", "none here"),
        ("", None, 0, "ok", "none here"),
        ("0,1", None, 0, "warning", "no driver is loaded"),  # SLURM has given some out
        (None, "580.95.05", 0, "warning", "torch sees no GPU"),
        ("-1", "580.95.05", 0, "warning", "torch sees no GPU"),  # on the CPU, as asked for
        ("0,1", "580.95.05", 0, "problem", "torch sees no GPU"),
        ("0,1", "470.82.01", 0, "problem", "driver 470.82.01 is too old for CUDA 13.0"),
        (None, "470.82.01", 0, "warning", "which needs 580.65.06"),
        ("0,1,2,3", "580.95.05", 3, "problem", "names 4, and torch sees 3"),
        ("0,1,2,3", "580.95.05", 4, "ok", "sees 4"),
        (None, "580.95.05", 8, "ok", "sees 8"),
    ],
)
def test_gpus_that_were_given_out_and_are_not_seen(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, driver: str | None, seen: int, level: str, words: str
) -> None:
    """This machine has none: what torch and the driver's file say is made up."""
    import torch

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(machine, "_driver_version", lambda: driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    finding = machine.check_gpus_are_seen()
    assert (finding.level, words in finding.found) == (level, True), finding


def compared(folders: list[str], late_s: float = 0.0) -> str:
    """What is said on two machines of one rank each, of which the second has its own folder and clock."""
    import time

    from mres.supervise.world import join_world

    rank = int(os.environ["RANK"])
    os.environ.update(LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    preflight._SEEN_WITHIN_S = 0.2
    if rank == 1:
        now = time.time
        time.time = lambda: now() + late_s  # type: ignore[assignment]
    found = [Finding("warning", "stack", "64 KiB", "`ulimit -s 8192`")] if rank == 1 else []
    try:
        with redirect_stderr(StringIO()) as said:
            preflight.compare_machines(join_world(60), Path(folders[rank]), found)
    except UserError as error:
        return str(error)
    return said.getvalue() or "fine"


def test_machines_that_agree(tmp_path: Path) -> None:
    (tmp_path / ".seen-by-all-1-1").touch()  # of a start that was killed
    first, second = run_distributed(compared, 2, [str(tmp_path)] * 2)
    assert list(tmp_path.iterdir()) == [], "the mark is taken away"
    assert "(rank 1): stack: 64 KiB; `ulimit -s 8192`" in first
    assert second == "fine"


def test_a_machine_that_has_another_folder_there(tmp_path: Path) -> None:
    folders = [tmp_path / "share", tmp_path / "own disk"]
    for folder in folders:
        folder.mkdir()
    (text,) = set(run_distributed(compared, 2, list(map(str, folders))))
    assert f"(rank 1): run folder: '{folders[1]}' is not the folder that rank 0 has" in text
    assert list(folders[0].iterdir()) == []


def test_a_clock_that_is_off(tmp_path: Path) -> None:
    (text,) = set(run_distributed(compared, 2, [str(tmp_path)] * 2, -1e6))
    assert "(rank 1): clock: -1000000 s from rank 0's" in text
    said, other = run_distributed(compared, 2, [str(tmp_path)] * 2, 60.0)
    assert "warning: " in said
    assert "(rank 1): clock: +60 s from rank 0's" in said
    assert other == "fine"


def test_a_folder_that_takes_no_files_is_said_as_before(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert all("folder:" not in said for said in run_distributed(compared, 2, [str(tmp_path / "file")] * 2))


@pytest.mark.slow
def test_what_is_wrong_on_one_machine_is_said_by_rank_0(tmp_path: Path, config: Path) -> None:
    """The second machine's rank may open few files; neither trains, and rank 0 says whose trouble it is."""
    script = tmp_path / "train.py"
    script.write_text(
        "import os, resource, runpy\n"
        "os.environ.update(LOCAL_RANK='0', LOCAL_WORLD_SIZE='1')\n"
        "if os.environ['RANK'] == '1':\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (1000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n"
        f"runpy.run_path({str(TRAIN)!r}, run_name='__main__')\n"
    )
    done = wait(start(script, ["--config", str(config), "parallel.strategy=ddp"], tmp_path, world_size=2), tmp_path)
    assert done.codes == [2, 2], done.outputs
    assert "error: rank 1 on " in done.outputs[0]
    assert "open files: 1000 allowed" in done.outputs[0]
    assert not (tmp_path / "runs" / "run" / "metrics.jsonl").exists()
