"""A run's folder belongs to one launch at a time, and keeps what the run was started with."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from commands import PATIENCE_S
from tiny_run import ROOT, TRAIN, write_config

from mres.config import load_config
from mres.errors import UserError
from mres.run_folder import held, write_start

HOLD = (
    "import sys, time; from pathlib import Path; from mres.run_folder import held\n"
    "with held(Path('run')): print('held', flush=True); time.sleep(600)"
)


def test_a_second_launch_is_told_who_has_the_folder_until_that_one_is_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen([sys.executable, "-c", HOLD], cwd=tmp_path, env=environ, stdout=subprocess.PIPE)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        monkeypatch.chdir(tmp_path)
        who = rf"'run' is in use by another launch, host {socket.gethostname()}, pid {first.pid}, since 2"
        with pytest.raises(UserError, match=who), held(Path("run")):
            pytest.fail("it was given to both")
        with held(Path("another run")):
            pass
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    with held(Path("run")):
        pass  # what a killed launch left does not matter
    with held(Path("run")):
        pass


def test_a_folder_that_cannot_be_made_is_left_to_the_ranks(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with held(tmp_path / "file" / "run"):
        pass


def test_training_into_a_folder_in_use_ends_before_torch_loads(tmp_path: Path, tiny_shards: Path) -> None:
    config = write_config(tmp_path, tiny_shards)
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: print('exit', end.code, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(TRAIN), "--config", str(config)]
    with held(tmp_path / "runs" / "run"):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        plan = subprocess.run([*command, "--dry-run"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "exit 2 False"
    assert done.stderr.startswith("error: the run's folder 'runs/run' is in use by another launch, host ")
    assert f"pid {os.getpid()}" in done.stderr
    assert done.stderr.count("\n") == 1
    assert plan.stdout.splitlines()[-1] == "exit 0 False", "a plan writes nothing"


def test_the_folder_keeps_the_ds_config_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ds.json").write_text('{"steps_per_print":  7}')
    config = load_config(None, ["parallel.strategy=zero", "parallel.ds_config=ds.json"])
    write_start(config, {"a": 1})
    kept = config.run_dir / "ds_config.json"
    assert kept.read_text() == '{"steps_per_print":  7}'
    assert json.loads((config.run_dir / "environment.json").read_text()) == {"a": 1}
    again = load_config(config.run_dir / "config.yaml", [f"parallel.ds_config={kept}"])
    write_start(again, {})  # run again from its own copy
    assert kept.read_text() == '{"steps_per_print":  7}'
    write_start(load_config(None, []), {})
    assert not kept.exists(), "a launch without the file does not keep that of one before it"
