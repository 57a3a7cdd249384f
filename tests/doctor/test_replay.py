"""`tools/replay.py`: a step's global batch again, with the losses that training had."""

import json
from pathlib import Path

import pytest
from commands import command
from PIL import Image
from poisoned_training import fit
from tiny_run import lines, write_config

from mres.config import load_config
from mres.doctor.replay import batch_of_step, replay
from mres.errors import UserError


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_shards: Path) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    options = [f"run.dir={folder}", "model.dropout=0", "train.steps=12", "checkpoint.every=6", "checkpoint.keep=9"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert fit(load_config(write_config(folder, tiny_shards), options), monkeypatch, set()).code == 0
    return folder / "run"


def rows(told: list[str]) -> dict[str, str]:
    """The line of each expression, by its id."""
    return {line.split()[3]: line for line in told if "“" in line}


@pytest.mark.parametrize("step", [7, 12])
def test_the_same_batch_with_the_losses_that_training_had(trained: Path, tmp_path: Path, step: int) -> None:
    told = list(replay(trained, step=step, batch=None, checkpoint=None, out=tmp_path / "sheet.png"))
    trace = lines(trained / "batches.jsonl")[step - 1]
    assert f"batch {step - 1} of the stream: {len(trace['image_ids'])} images" in told[0]
    assert sorted(rows(told)) == sorted(trace["expression_ids"])
    figures = [float(row.split()[0]) for row in rows(told).values() if not row.strip().startswith("-")]
    assert figures == sorted(figures, reverse=True)
    if step == 7:  # the weights are those of step 6
        loss = lines(trained / "metrics.jsonl")[step - 1]["loss"]
        assert sum(figures) / len(figures) == pytest.approx(loss, rel=2e-4)
    assert "step-00000006" in told[0], "weights of before the step"
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert min(sheet.size) > 200


def test_the_text_is_what_the_model_saw(trained: Path, tmp_path: Path) -> None:
    told = list(replay(trained, step=None, batch=3, checkpoint=None, out=tmp_path / "sheet.png"))
    texts = [row.split("“")[1].split("”")[0] for row in rows(told).values()]
    assert all(text.startswith(("the ", "the top of the ")) and text.endswith("box") for text in texts)


def test_which_batch_a_step_took(tmp_path: Path) -> None:
    def note(step: int, skipped: int, *bad: tuple[int, int]) -> str:
        named = [{"step": s, "batch": b} for s, b in bad]
        return json.dumps({"step": step, "skipped_batches": skipped, "bad_steps": named}) + "\n"

    assert batch_of_step(tmp_path, 5) == 4
    (tmp_path / "rollbacks.jsonl").write_text(note(10, 6, (13, 12), (14, 13)) + note(20, 9, (23, 28)))
    (tmp_path / "bad_steps.jsonl").write_text(json.dumps({"step": 14, "batch": 19}) + "\n")
    assert [batch_of_step(tmp_path, step) for step in (10, 11, 20, 21)] == [9, 16, 25, 29]
    assert batch_of_step(tmp_path, 13) == 12, "of a skipped step, the batch that it met"
    with pytest.raises(UserError, match=r"step 14 was skipped 2 times; say with --batch which: 13, 19"):
        batch_of_step(tmp_path, 14)


def test_the_command(trained: Path, tmp_path: Path) -> None:
    done = command("tools/replay.py", trained, "--step", "7")
    assert done.returncode == 0, done.stderr
    assert (trained / "replay-step-7.png").is_file()
    for arguments, words in (
        ([str(tmp_path), "--step", "7"], f"no run in '{tmp_path}'"),
        ([str(trained), "--step", "0"], "--step counts from 1"),
        ([str(trained), "--step", "13"], "has no step 13: it is planned for 12; name one from 1 to 12"),
    ):
        refused = command("tools/replay.py", *arguments)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert words in refused.stderr
