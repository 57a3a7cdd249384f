"""Model FLOPs against what torch counts in a real step, and against the devices' peak."""

from pathlib import Path

import pytest
import torch
from tiny_run import MODEL, TRAIN, lines, run, write_config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mres import flops
from mres.config import load_config
from mres.model.task import SegmentationTask
from mres.supervise.world import World

TINY = [f"model.{key}={value}" for key, value in MODEL.items()]


def test_the_rule_of_three_is_what_forward_and_backward_take() -> None:
    config = load_config(None, TINY)
    task = SegmentationTask(config.model, config.loss)
    model, shape = task.build(0), task.shape
    image_BCSS = torch.zeros(2, 3, shape.side, shape.side, dtype=torch.uint8)
    text_BKT, _ = task.tokenizer(["a red car"] * 6)
    # Of CPUs' fused attention the counter knows nothing: plain products, which are as many.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
        logits_BKhh = task.logits(model, image_BCSS, text_BKT.unflatten(0, (2, 3)))
    assert flops.flops_per_image(task, 3) * 2 == 3 * forward.get_total_flops() > 1e6
    with FlopCounterMode(display=False) as backward:
        logits_BKhh.sum().backward()
    # The first layers need no gradient of the image.
    assert backward.get_total_flops() / forward.get_total_flops() == pytest.approx(2, rel=0.15)


def test_more_expressions_an_image_are_cheaper_than_more_images() -> None:
    config = load_config(None, TINY)
    task = SegmentationTask(config.model, config.loss)
    assert 1 < flops.flops_per_image(task, 8) / flops.flops_per_image(task, 1) < 8


@pytest.mark.parametrize(
    ("name", "bfloat16", "tf32", "float32"),
    [
        ("NVIDIA A100-SXM4-80GB", 312, 156, 19.5),
        ("NVIDIA A800-SXM4-80GB", 312, 156, 19.5),
        ("NVIDIA A800 80GB PCIe", 312, 156, 19.5),
        ("NVIDIA H100 80GB HBM3", 989, 494, 67),
        ("NVIDIA H100 PCIe", 756, 378, 51),
        ("NVIDIA H100 NVL", 835, 418, 60),
        ("NVIDIA H800", 989, 494, 67),
        ("NVIDIA H200", 989, 494, 67),
        ("NVIDIA H20", 148, 74, 44),
        ("NVIDIA L40S", 362, 183, 91.6),
        ("NVIDIA L40", 181, 90.5, 90.5),
        ("NVIDIA L4", 121, 60, 30.3),
        ("NVIDIA A40", 149.7, 74.8, 37.4),
        ("NVIDIA GeForce RTX 4090", 165.2, 82.6, 82.6),
        ("NVIDIA GeForce RTX 4090 D", 147, 73.5, 73.5),
    ],
)
def test_published_peaks(name: str, bfloat16: float, tf32: float, float32: float) -> None:
    assert flops.published(name, "bfloat16", tf32=False) == bfloat16 * 1e12
    assert flops.published(name, "float32", tf32=True) == tf32 * 1e12
    assert flops.published(name, "float32", tf32=False) == float32 * 1e12
    assert flops.published(name, "float64", tf32=False) is None


@pytest.mark.parametrize(
    "name", ["NVIDIA A100-SXM4-80GB MIG 1g.10gb", "NVIDIA GH300", "Tesla T4", "AMD Instinct MI300X"]
)
def test_of_other_devices_nothing_is_claimed(name: str) -> None:
    assert flops.published(name, "bfloat16", tf32=True) is None


def test_a_cpu_is_measured_unless_that_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    found = flops.measured(torch.float32)
    assert found is not None
    assert 1e8 < found < 1e14
    monkeypatch.setattr(flops, "_CPU_BUDGET_S", 1e-9)
    assert flops.measured(torch.float32) is None


def test_without_a_peak_there_is_no_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(None, TINY)
    monkeypatch.setattr(flops, "peak_flops", lambda device, dtype: None)
    world = World(0, 1, 0, 1, torch.device("cpu"))
    assert flops.utilisation(config, SegmentationTask(config.model, config.loss), world) is None


def test_a_run_logs_the_share_of_the_peak(tmp_path: Path, tiny_shards: Path) -> None:
    done = run(TRAIN, ["--config", str(write_config(tmp_path, tiny_shards)), "train.steps=4"], tmp_path)
    assert done.codes == [0], done.output
    for line in lines(tmp_path / "runs" / "run" / "metrics.jsonl"):
        assert 0 < line["mfu"] < 1
        assert 0 <= line["collective_s"] < line["step_s"]
