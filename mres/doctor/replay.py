"""A global batch of a run, made again: the same images, expressions and augmentation, and what each expression's loss is.

Shapes: K expressions of an image, S side of the square, h side of the grid of logits, H×W an image as drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mres.checkpoint import store
from mres.config import Config, load_config
from mres.errors import UserError
from mres.evaluate.drawn_file import check_drawn, write_drawn
from mres.evaluate.overlay import TRUTH_COLOUR, drawing_size, grid, overlay, panel, resized_image, resized_mask
from mres.model.task import SegmentationTask
from mres.pretrained.whole import load_weights
from mres.run_folder import BAD_STEPS, ROLLBACKS, read_lines
from mres.stream.batch import Batch
from mres.stream.loader import Batches
from mres.stream.order import Order
from mres.stream.sets import TrainingSets

_DRAWN, _COLUMNS, _SIDE = 24, 6, 224  # of the contact sheet


@dataclass(frozen=True, slots=True)
class Expression:
    """One expression of the batch as the model saw it: its text after any flip or cut, and its losses."""

    id: str
    text: str
    valid: bool
    losses: dict[str, float]
    image_SS3: np.ndarray
    mask_hh: np.ndarray


def replay(
    run: Path, *, step: int | None, batch: int | None, checkpoint: Path | None, out: Path, kind: str | None = None
) -> Iterator[str]:
    """Yields lines on a global batch of the run in folder `run`, and writes a contact sheet (PNG) to `out`.

    Args:
        step: of the run, from 1; one in bad_steps.jsonl means the batch that was skipped then.
        batch: or the batch's number in the stream, from 0, as bad_steps.jsonl has it.
        checkpoint: weights to compute losses with; default: the run's newest of before the step.
        kind: of a model of one's own, where its file has moved.

    Raises:
        UserError: no run, no such step, no weights, or data that are not there any more.
    """
    check_drawn(out, "--out")
    config = load_config(run / "config.yaml", kind=kind, stored=True)
    sets = TrainingSets.open(config.data)
    order = sets.order(config.data, config.run.seed)
    planned = config.train.total_steps(order.steps_per_epoch)
    if step is not None and step > planned:
        raise UserError(
            f"the run in '{run}' has no step {step}: it is planned for {planned}; name one from 1 to {planned}"
        )
    index = batch if batch is not None else batch_of_step(run, step or 1)
    task = SegmentationTask(config.model, config.loss)
    singles = global_batch(config, sets, order, task, index)
    weights = checkpoint or _weights_before(run, step)
    model = task.build(config.run.seed)
    load_weights(model, config.model, weights)
    model.eval()
    expressions = [e for single in singles for e in _expressions(task, model, single)]
    expressions.sort(key=lambda e: -e.losses.get("loss", 0.0))
    yield f"batch {index} of the stream: {len(singles)} images, {len(expressions)} expressions; losses with {weights}"
    yield from _table(expressions)
    _draw(expressions[:_DRAWN], out)
    yield f"{out}: the {min(_DRAWN, len(expressions))} highest losses"


def batch_of_step(run: Path, step: int) -> int:
    """Which of the stream's global batches step `step` (from 1) of a run took; of a skipped step, the one that it met.

    Raises:
        UserError: the step was skipped more than once, with several batches.
    """
    rollbacks = read_lines(run / ROLLBACKS)
    skipped = [*(line for note in rollbacks for line in note["bad_steps"]), *read_lines(run / BAD_STEPS)]
    met = sorted({line["batch"] for line in skipped if line["step"] == step})
    if len(met) > 1:
        raise UserError(f"step {step} was skipped {len(met)} times; say with --batch which: {', '.join(map(str, met))}")
    if met:
        return int(met[0])
    # Each going back decides on the steps behind it, until the next one.
    offsets = [int(note["skipped_batches"]) for note in rollbacks if step > note["step"]]
    return step - 1 + (offsets[-1] if offsets else 0)


def global_batch(config: Config, sets: TrainingSets, order: Order, task: SegmentationTask, index: int) -> list[Batch]:
    """The images of global batch number `index`, each as a batch of its own, with its ids."""
    samples = next(order.samples(index, index + 1, rank=0, world_size=1))
    batches = Batches(sets, order, config.data, task.shape, task.tokenizer)
    singles = []
    for single in (batches.__getitems__([sample]) for sample in samples if sample.index is not None):
        if isinstance(single, UserError):
            raise single
        singles.append(single)
    return singles


def _weights_before(run: Path, step: int | None) -> Path:
    root = run / "checkpoints"
    for at_most in (None if step is None else step - 1, None):
        if found := store.newest_sound(root, optimizer=False, at_most=at_most):
            return found.folder
    raise UserError(f"no sound checkpoint in '{root}' to compute losses with; name one with --checkpoint")


@torch.no_grad()
def _expressions(task: SegmentationTask, model: nn.Module, single: Batch) -> Iterator[Expression]:
    image_SS3 = single.image_BCSS[0].permute(1, 2, 0).numpy()
    texts = task.tokenizer.texts(single.text_BKT[0])
    for k, (id_, losses) in enumerate(zip(single.expression_ids, task.losses_of_each(model, single), strict=False)):
        valid = bool(single.valid_BK[0, k])
        figures = {name: float(value) for name, value in losses.items()} if valid else {}
        yield Expression(id_, texts[k], valid, figures, image_SS3, single.mask_BKhh[0, k].numpy() >= 128)


def _table(expressions: list[Expression]) -> Iterator[str]:
    names = list(next((e.losses for e in expressions if e.valid), {"loss": 0.0}))
    yield f"{' '.join(name.removeprefix('loss_').rjust(9) for name in names)}  expression"
    for e in expressions:
        shown = [f"{e.losses[name]:9.4f}" if e.valid else f"{'-':>9}" for name in names]
        yield f"{' '.join(shown)}  {e.id}  “{e.text}”{'' if e.valid else ' (moved out of the square: not trained on)'}"


def _draw(expressions: list[Expression], out: Path) -> None:
    panels = []
    for e in expressions:
        size = drawing_size(len(e.image_SS3), len(e.image_SS3), _SIDE)
        drawn = overlay(resized_image(e.image_SS3, size), resized_mask(e.mask_hh, size), TRUTH_COLOUR)
        panels.append(panel(drawn, f"{e.losses.get('loss', float('nan')):.3f}  {e.text}"))
    write_drawn({out: grid(panels, _COLUMNS)})
