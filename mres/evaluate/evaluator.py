"""Runs a model over a held-out shard set: every expression exactly once, on any number of ranks.

Shapes: B images, K expressions an image, S side of the square, h side of the grid of logits, T tokens, H×W an original image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from mres.config import Config
from mres.evaluate.iou import figures_of, intersection_union
from mres.evaluate.results import ExpressionResult, merge_results, num_cut
from mres.io.processes import heed_parent_only
from mres.io.progress import track
from mres.model.task import SegmentationTask
from mres.parallel.strategy import Strategy
from mres.records import ImageRecord, RecordError, Target, decode_masks, encode_mask, expression_id
from mres.shards.reader import ShardSet
from mres.stream import transforms
from mres.stream.batch import token_ids, which_cut
from mres.stream.image import square_image

# Expressions a forward pass takes an image; an image with more is encoded again for the rest.
MAX_EXPRESSIONS = 32


class EvaluationStoppedError(Exception):
    """Somebody asked one of the ranks to stop; raised on all of them, after the same forward pass."""


@dataclass(frozen=True, slots=True)
class _Item:
    """One image with all its expressions, ready for the model."""

    record: ImageRecord
    geometry: transforms.Geometry
    image_CSS: Tensor
    text_ET: Tensor
    pairs: list[tuple[Target, int]]
    cut: list[bool]  # of each expression, whether the model does not read its end


@dataclass(frozen=True, slots=True)
class _Pass:
    """What one forward pass takes: expressions start … start+K-1 of some images."""

    items: list[_Item]
    start: int
    image_BCSS: Tensor
    text_BKT: Tensor


class Evaluator:
    """Masks compared at original resolution; ranks take images r, r + world, … without padding."""

    def __init__(
        self,
        config: Config,
        shards: ShardSet,
        task: SegmentationTask,
        strategy: Strategy,
        is_to_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._config, self._shards, self._task, self._strategy = config, shards, task, strategy
        self._is_to_stop = is_to_stop

    def figures(self, module: nn.Module, *, max_images: int | None = None) -> dict[str, Any] | None:
        """mIoU, oIoU and P@X by granularity, and how many expressions were cut, on rank 0; None elsewhere."""
        results = self.results(module, max_images=max_images)
        return None if results is None else {**figures_of(results), "cut_expressions": num_cut(results)}

    def results(self, module: nn.Module, *, max_images: int | None = None) -> list[ExpressionResult] | None:
        """A result an expression, in the order of the shard set, on rank 0; None elsewhere.

        Raises:
            RecordError: on all ranks, for a record or image that cannot be read; an evaluation leaves nothing out.
            EvaluationStoppedError: `is_to_stop()` of a rank.
        """
        num_images = min(len(self._shards), max_images or len(self._shards))
        training = module.training
        module.eval()
        try:
            with torch.no_grad():
                mine = [result for results in self._forward_all(module, num_images) for result in results]
        finally:
            module.train(training)
        parts = self._strategy.gather_object(mine)
        if parts is None:
            return None
        expected = [
            expression_id(record, target, i)
            for record in map(self._shards.annotations, range(num_images))
            for target, i in record.pairs()
        ]
        return merge_results(parts, expected)

    def _forward_all(self, module: nn.Module, num_images: int) -> Iterator[list[ExpressionResult]]:
        """Forward passes are collective under sharding: a rank that has run out joins the others' with an empty batch."""
        work = self._passes(num_images)
        while True:
            job = next(work, None)
            bad = job if isinstance(job, str) else None
            signs = float(job is not None), float(bad is not None), float(self._is_to_stop())
            num_busy, num_bad, num_stopped = self._strategy.all_reduce_sum(signs)
            if num_bad:
                first = next(message for message in self._strategy.all_gather_object(bad) if message is not None)
                raise RecordError(
                    f"{first}; an evaluation leaves nothing out: repair the shard set, or build it without the record"
                )
            if not num_busy:
                return
            if num_stopped:
                raise EvaluationStoppedError
            if not isinstance(job, _Pass):
                shape = self._task.shape
                image_1CSS = torch.zeros(1, 3, shape.side, shape.side, dtype=torch.uint8)
                self._logits(module, image_1CSS, torch.zeros(1, 1, shape.text_length, dtype=torch.int32))
                continue
            logits_BKhh = self._logits(module, job.image_BCSS, job.text_BKT)
            for item, logits_Khh in zip(job.items, logits_BKhh, strict=True):
                yield self._compare(item, job.start, logits_Khh)

    def _passes(self, num_images: int) -> Iterator[_Pass | str]:
        """What this rank has to do; at a record that cannot be read the message on it, and nothing more."""
        world = self._strategy.world
        mine = range(world.rank, num_images, world.size)
        batches = DataLoader(
            _Items(self._shards, self._task, self._config.data.resize),
            batch_size=self._config.evaluate.images_per_batch,
            sampler=mine,
            collate_fn=list,
            num_workers=self._config.data.workers,
            worker_init_fn=_init_worker,
        )
        shown = track(batches, len(batches), "evaluating (batches)") if world.is_main else batches
        for items in shown:
            bad = next((item for item in items if isinstance(item, str)), None)
            if bad is not None:
                yield bad
                return
            for start in range(0, max(len(item.text_ET) for item in items), MAX_EXPRESSIONS):
                chosen = [item for item in items if len(item.text_ET) > start]
                texts = [item.text_ET[start : start + MAX_EXPRESSIONS] for item in chosen]
                image_BCSS = torch.stack([item.image_CSS for item in chosen])
                yield _Pass(chosen, start, image_BCSS, pad_sequence(texts, batch_first=True))

    def _logits(self, module: nn.Module, image_BCSS: Tensor, text_BKT: Tensor) -> Tensor:
        device = self._strategy.world.device
        return self._task.logits(module, image_BCSS.to(device), text_BKT.to(device)).float()

    def _compare(self, item: _Item, start: int, logits_Khh: Tensor) -> list[ExpressionResult]:
        chosen = slice(start, start + MAX_EXPRESSIONS)
        pairs, cut = item.pairs[chosen], item.cut[chosen]
        masks_KHW = predicted_masks(
            logits_Khh[: len(pairs)], item.geometry, self._task.shape.side, self._config.evaluate.threshold
        )
        truth_KHW = decode_masks([target.mask for target, _ in pairs])
        keep = self._config.evaluate.save_masks
        return [
            ExpressionResult.of(
                item.record,
                target,
                i,
                intersection_union(mask_HW, truth_HW.astype(bool)),
                encode_mask(mask_HW) if keep else None,
                cut=is_cut,
            )
            for (target, i), is_cut, mask_HW, truth_HW in zip(pairs, cut, masks_KHW, truth_KHW, strict=True)
        ]


def _init_worker(_: int) -> None:
    heed_parent_only()


def predicted_masks(logits_Khh: Tensor, geometry: transforms.Geometry, side: int, threshold: float) -> list[np.ndarray]:
    """Binary masks at the original size: logits are brought there bilinearly, then compared with the threshold's logit."""
    logits_KSS = (
        F.interpolate(logits_Khh[:, None], size=(side, side), mode="bilinear", align_corners=False)[:, 0].cpu().numpy()
    )
    cut = math.log(threshold / (1 - threshold))
    return [geometry.to_original(logits_SS) > cut for logits_SS in logits_KSS]


class _Items(Dataset[_Item | str]):
    """Images without augmentation, with every expression; the message, where a record cannot be read."""

    def __init__(self, shards: ShardSet, task: SegmentationTask, resize: str) -> None:
        self._shards, self._tokenize, self._shape, self._resize = shards, task.tokenizer, task.shape, resize

    def __getitem__(self, index: int) -> _Item | str:
        try:
            return self._item(self._shards.read(index), self._shards.name(index))
        except RecordError as error:
            return str(error)

    def _item(self, record: ImageRecord, where: str) -> _Item:
        geometry = transforms.fit(record.width, record.height, self._shape.side, self._resize)
        image_CSS = torch.empty(3, self._shape.side, self._shape.side, dtype=torch.uint8)
        square_image(record, geometry, image_CSS, where)
        pairs = list(record.pairs())
        texts = [target.expressions[i].text for target, i in pairs]
        text_ET, num = token_ids(self._tokenize, texts, self._shape)
        cut = which_cut(self._tokenize, texts) if num else [False] * len(texts)
        return _Item(record, geometry, image_CSS, text_ET, pairs, cut)
