"""Benches of training: one image with K expressions against pairs; the training loop against a bare one."""

import argparse
import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.claim import claim
from benchmarks.timing import alternate
from mres.config import Config, load_config
from mres.model.task import SegmentationTask
from mres.parallel.factory import build_strategy
from mres.parallel.strategy import AdamW
from mres.run_folder import RunLog
from mres.stream.batch import Batch
from mres.stream.epoch import SetShape
from mres.stream.order import Order
from mres.supervise.stop_request import StopRequest
from mres.supervise.world import join_world
from mres.train.callback import Callbacks
from mres.train.callbacks.console import Console
from mres.train.callbacks.jsonl import Jsonl
from mres.train.callbacks.tensorboard import TensorBoard
from mres.train.optim import parameter_groups
from mres.train.progress import Progress
from mres.train.trainer import Trainer


def grouping(arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains the same expressions once as images with K each, once as pairs; alternating, so that noise hits both."""

    config = training_config(arguments, arguments.k)
    task, step = _bare_step(config)
    grouped = synthetic(task, config.data.images_per_batch, arguments.k)
    pairs = _as_pairs(grouped)
    torch.set_num_threads(arguments.threads)
    seconds = alternate({"grouped": lambda: step(grouped), "pairs": lambda: step(pairs)}, arguments.rounds)
    expressions = config.data.images_per_batch * arguments.k
    rates = {name: expressions / s for name, s in seconds.items()}
    return {
        "bench": "grouping",
        "what": f"{arguments.size}: {config.data.images_per_batch} images x K={arguments.k} against {expressions} pairs (K=1)",
        "expressions_per_s": rates,
        "claims": {"grouped / pairs": claim(rates["grouped"] / rates["pairs"], ">=", 3)},
    }


def loop(arguments: argparse.Namespace) -> dict[str, Any]:
    """The trainer (agreement, norm, metrics, progress) on prepared batches, against forward, backward, clip, step."""

    torch.set_num_threads(arguments.threads)
    config = training_config(arguments, arguments.k)
    task, step = _bare_step(config)
    batch = synthetic(task, config.data.images_per_batch, arguments.k)
    steps = 5

    def bare() -> None:
        for _ in range(steps):
            step(batch)

    with TemporaryDirectory() as folder:
        trained = _trainer_steps(config, task, batch, Path(folder), steps)
        seconds = alternate({"mres": trained, "bare": bare}, arguments.rounds)
    return {
        "bench": "loop",
        "what": f"{arguments.size}: {steps} steps of {config.data.images_per_batch} images x K={arguments.k}, strategy single",
        "seconds_a_step": {name: s / steps for name, s in seconds.items()},
        "claims": {"mres / bare": claim(seconds["mres"] / seconds["bare"], "<=", 1.03)},
    }


def training_config(arguments: argparse.Namespace, expressions: int, strategy: str = "single") -> Config:
    """The config of a bench's run."""
    overrides = [f"model.size={arguments.size}", f"data.images_per_batch={arguments.images}"]
    overrides += [f"data.expressions_per_image={expressions}", f"parallel.strategy={strategy}", "train.steps=1000000"]
    return load_config(None, overrides)


def _bare_step(config: Config) -> tuple[SegmentationTask, Callable[[Batch], None]]:
    """What anyone would write: the same model, loss, AdamW and clipping, with nothing around them."""

    task = SegmentationTask(config.model, config.loss)
    model = task.build(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(batch: Batch) -> None:
        loss = task.losses(model, batch)["loss"] / batch.valid_BK.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return task, step


def _trainer_steps(
    config: Config, task: SegmentationTask, batch: Batch, folder: Path, steps: int
) -> Callable[[], None]:

    strategy = build_strategy(config.parallel, join_world(config.parallel.timeout_s))
    model = task.build(0)
    groups = parameter_groups(model, config.optim.weight_decay)
    strategy.wrap(model, task.blocks(model), groups, AdamW(config.optim.betas, config.optim.eps, 1.0))

    class Prepared:
        order = Order(0, [SetShape(10**6, np.arange(1))], config.data.images_per_batch)

        def batches(self, first: int, last: int) -> Iterator[Batch]:
            return iter([batch] * (last - first))

    log = RunLog(folder, enabled=True)
    callbacks = Callbacks([Jsonl(log), TensorBoard(log), Console(steps)])
    callbacks.run_start(0)
    trainer = Trainer(
        config, strategy=strategy, task=task, stream=Prepared(), log=log, stop=StopRequest(),  # type: ignore[arg-type]
        saver=_NoSaver(),  # type: ignore[arg-type]
        evaluate=lambda step: True, callbacks=callbacks,
    )  # fmt: skip
    return lambda: _silently(lambda: trainer.fit(0, steps, Progress()))


class _NoSaver:
    """Nothing is due to be saved."""

    def save(self, step: int, *, last: bool = False) -> None: ...

    def failed(self) -> bool:
        return False

    def wait(self) -> None: ...

    def figures(self) -> dict[str, float]:
        return {}


def _silently(action: Callable[[], Any]) -> None:

    with contextlib.redirect_stdout(io.StringIO()):
        action()


def synthetic(task: SegmentationTask, images: int, k: int) -> Batch:
    """A batch of noise with one expression."""
    torch.manual_seed(0)
    shape = task.shape
    text_T, _ = task.tokenizer(["the left wheel of the red car"])
    grid = shape.side // shape.stride
    return Batch(
        torch.randint(0, 256, (images, 3, shape.side, shape.side), dtype=torch.uint8),
        torch.randint(0, 2, (images, k, grid, grid), dtype=torch.uint8) * 255,
        text_T.expand(images, k, -1).contiguous(),
        torch.ones(images, k, dtype=torch.bool),
        image_ids=tuple(map(str, range(images))),
    )


def _as_pairs(batch: Batch) -> Batch:

    k = batch.valid_BK.shape[1]
    rest = [t.flatten(0, 1)[:, None].contiguous() for t in (batch.mask_BKhh, batch.text_BKT, batch.valid_BK)]
    mask_XKhh, text_XKT, valid_XK = rest
    return Batch(batch.image_BCSS.repeat_interleave(k, dim=0), mask_XKhh, text_XKT, valid_XK)
