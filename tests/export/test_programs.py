"""The model as a program: it computes what the model does, runs without mres, and is not given out where it differs."""

import math
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from trained_run import Trained

from mres.convert import convert
from mres.errors import UserError
from mres.evaluate.evaluator import predicted_masks
from mres.evaluate.segmenter import load
from mres.export import parity, programs
from mres.export.folder import export

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def exported(trained: Trained) -> Path:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    out = trained.folder / "exported" / "programs"
    lines = list(export(trained.run, out, programs=["torch", "onnx"]))
    for name in ("model.pt2", "model.onnx"):
        shown = [line for line in lines if line.startswith(f"{name}: ")]
        assert len(shown) == len(parity.SIZES)
        assert all("IoU of the masks at least" in line and "(0 pixels)" not in line for line in shown)
        assert f"| `{name}` | 1 × 12 |" in (out / "README.md").read_text(encoding="utf-8")
    return out


def test_onnx_and_the_tokenizers_file_are_enough(exported: Path) -> None:
    """Text to masks with onnxruntime and `tokenizers` alone, for numbers of expressions that were never traced."""
    import onnxruntime
    from tokenizers import Tokenizer

    segmenter = load(exported, device="cpu")
    image_HW3 = np.random.default_rng(0).integers(0, 255, (37, 91, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(exported / "tokenizer.json"))
    for texts in (["the red box"], [f"box number {i}" for i in range(17)]):
        question = segmenter.question(image_HW3, texts)
        ids_KT = np.array([encoded.ids for encoded in tokenizer.encode_batch(texts)], np.int32)
        given = {"image": question.image_1CSS.numpy(), "text": ids_KT[None]}
        logits_Khh = torch.from_numpy(session.run(["logits"], given)[0][0])
        side, threshold = segmenter.task.shape.side, segmenter.config.evaluate.threshold
        masks_KHW = np.stack(predicted_masks(logits_Khh, question.geometry, side, threshold))
        assert np.mean(masks_KHW == segmenter.segment(image_HW3, texts)) > 0.999


def test_the_example_of_the_documentation_works(exported: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "onnxruntime" in block)
    rows = np.linspace(0, 255, 120, dtype=np.uint8)  # smooth: Pillow and torch do not resize to the same bits
    image = Image.fromarray(
        np.stack([np.tile(rows, (80, 1)), np.full((80, 120), 90, np.uint8), np.tile(rows[::-1], (80, 1))], -1)
    )
    image.save(tmp_path / "photo.jpg", quality=95)
    code = example.replace("photo.jpg", str(tmp_path / "photo.jpg")).replace("exported/mine", str(exported))
    segmenter = load(exported, device="cpu")
    texts = ["the red car", "the left wheel of the red car"]
    question = segmenter.question(tmp_path / "photo.jpg", texts)
    with torch.no_grad():
        logits = segmenter.task.logits(segmenter.model, question.image_1CSS, question.text_KT[None])
    cut = float(logits.median())  # the model is hardly trained: at 0 its masks are empty
    found: dict[str, Any] = {}
    exec(code.replace("> 0 ", f"> {cut} "), found)
    expected = segmenter.segment(tmp_path / "photo.jpg", texts, threshold=1 / (1 + math.exp(-cut)))
    assert 0.1 < expected.mean() < 0.9
    assert np.mean(np.stack(found["masks"]) == expected) > 0.97


def test_a_program_that_differs_does_not_agree(exported: Path) -> None:
    segmenter = load(exported, device="cpu")

    def run(image_BCSS: torch.Tensor, text_BKT: torch.Tensor) -> torch.Tensor:
        return segmenter.task.logits(segmenter.model, image_BCSS, text_BKT)

    assert all(row.agrees and row.difference == 0 for row in parity.compare(segmenter, run))
    for wrong in (lambda *given: run(*given) + 0.01, lambda *given: run(*given) * torch.nan):
        rows = list(parity.compare(segmenter, wrong))
        assert not any(row.agrees for row in rows)
        assert "TOO FAR" in str(rows[0])


def test_where_a_program_differs_nothing_is_written(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(parity, "MAX_DIFFERENCE", -1.0)
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["export.py", str(trained.run), str(out), "--program", "torch"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "tools" / "export.py"), run_name="__main__")
    assert ended.value.code == 1
    shown = capsys.readouterr()
    assert "model.pt2: 1 x 1 expressions: logits differ by at most 0.0e+00" in shown.out
    assert "error: model.pt2 does not compute what the model does; nothing was written" in shown.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ["torch", "onnx"])
def test_a_disk_without_room_for_the_program_is_told_and_nothing_is_left(
    to: str,
    trained: Trained,
    exported: Path,
    small_disk: Path | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if small_disk is None:
        pytest.skip("only root can mount a small disk")
    monkeypatch.setattr(convert, "_MARGIN_BYTES", 0)  # else the weights of so small a model are refused already
    program, weights = ((exported / name).stat().st_size for name in (programs.FILES[to], "model.safetensors"))
    room = weights + 3 * program // 4
    subprocess.run(["mount", "-o", f"remount,size={room}", str(small_disk)], check=True)
    monkeypatch.setattr(sys, "argv", ["export.py", str(trained.run), str(small_disk / "out"), "--program", to])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "tools" / "export.py"), run_name="__main__")
    assert ended.value.code == 2
    (error,) = (line for line in capsys.readouterr().err.splitlines() if "error" in line.lower())
    assert "No space left on device" in error
    assert str(small_disk / "out") in error
    assert not list(small_disk.iterdir())


def test_what_is_not_installed_is_named(trained: Trained, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(programs, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(
        UserError, match="needs onnxscript, not installed here: pip install onnx onnxscript onnxruntime"
    ):
        list(export(trained.run, tmp_path / "out", programs=["onnx"]))
