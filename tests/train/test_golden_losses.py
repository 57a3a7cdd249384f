"""The losses of one small run, step by step: a change that was not meant to change training must not change them.

One that was meant to writes them anew: `GOLDEN=write make test ARGS=tests/train/test_golden_losses.py`, and says why.
"""

import os
from pathlib import Path

import pytest
from tiny_run import TRAIN, lines, run, write_config

GOLDEN = Path(__file__).parents[1] / "golden" / "tiny_single.txt"


def test_golden_losses(tmp_path: Path, tiny_shards: Path) -> None:
    arguments = ["--config", str(write_config(tmp_path, tiny_shards)), "model.dropout=0"]
    done = run(TRAIN, arguments, tmp_path)
    assert done.codes == [0], done.output
    found = {line["step"]: line["loss"] for line in lines(tmp_path / "runs" / "run" / "metrics.jsonl")}
    if os.environ.get("GOLDEN") == "write":
        GOLDEN.write_text("".join(f"{step} {loss!r}\n" for step, loss in found.items()), encoding="utf-8")
    pairs = [line.split() for line in GOLDEN.read_text(encoding="utf-8").splitlines()]
    expected = {int(step): float(loss) for step, loss in pairs}
    assert list(expected) == list(range(1, 21))
    assert found == pytest.approx(expected, rel=1e-4)
    assert len(set(expected.values())) == 20
