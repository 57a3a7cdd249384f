"""A step reads nothing back: on a GPU every such operation would let the host wait for all that is queued before it."""

from pathlib import Path

import pytest
import torch
from tiny_run import MODEL
from torch.utils._python_dispatch import TorchDispatchMode

from mres.config import load_config
from mres.model.image import normalise
from mres.model.task import SegmentationTask
from mres.parallel.factory import build_strategy
from mres.parallel.strategy import AdamW
from mres.run_folder import RunLog
from mres.stream.batch import Batch
from mres.supervise.world import join_world, leave_world
from mres.train.optim import parameter_groups
from mres.train.progress import Progress
from mres.train.step_filter import SkipPolicy

# A value that Python reads, sizes that depend on values, and a tensor made from Python's numbers (a copy that blocks).
WAITS = ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::masked_select", "aten::lift_fresh")


class Recorder(TorchDispatchMode):
    """The names of the operations that ran, with what they were given where it tells."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(operation.name())
        return operation(*args, **(kwargs or {}))

    @property
    def waits(self) -> list[str]:
        return [name for name in self.names if name.split(".")[0] in WAITS]


def batch_of(task: SegmentationTask) -> Batch:
    side = task.shape.side
    image_BCSS = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    text_BKT = torch.randint(1, 1000, (2, 3, task.shape.text_length), dtype=torch.int32)
    mask_BKhh = torch.randint(0, 256, (2, 3, side // 2, side // 2), dtype=torch.uint8)
    return Batch(image_BCSS, mask_BKhh, text_BKT, torch.ones(2, 3, dtype=torch.bool), ("a", "b"), ("c",) * 6)


@pytest.mark.parametrize("recompute", ["none", "block"])
def test_a_step_reads_nothing_back(tmp_path: Path, recompute: str) -> None:
    model = [f"model.{key}={value}" for key, value in MODEL.items()]
    options = ["parallel.strategy=single", f"parallel.activation_checkpointing={recompute}", "train.spike_factor=10"]
    config = load_config(None, [*model, *options, "optim.ema_decay=0.9", f"run.dir={tmp_path}"])
    task = SegmentationTask(config.model, config.loss)
    strategy = build_strategy(config.parallel, join_world(config.parallel.timeout_s))
    try:
        network = task.build(seed=0)
        strategy.wrap(network, network.blocks(), parameter_groups(network, 0.05), AdamW((0.9, 0.99), 1e-8, 1.0))
        strategy.track_average()
        skips = SkipPolicy(config, strategy, RunLog(tmp_path, enabled=False), Progress())
        batch = batch_of(task)
        with Recorder() as recorder:
            with strategy.micro_batch(last=True):
                loss = task.losses(strategy.module, batch)["loss"]
                strategy.backward(loss)
            judgement = skips.judge(0, loss.detach())
            skips.note(judgement, strategy.step(1e-3, judgement.may_move), batch)
            assert strategy.average is not None
            strategy.average.update(0.1)
        assert recorder.waits == []
        assert len(recorder.names) > 300
        with recorder:
            skips.read()
        assert recorder.waits, "it is seen where figures are read"
    finally:
        leave_world()


def test_pixels_are_those_of_clips_statistics() -> None:
    image_BCSS = torch.arange(256, dtype=torch.uint8).repeat(2, 3, 1, 1)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    assert torch.equal(normalise(image_BCSS), (image_BCSS.float() / 255 - mean) / std)
