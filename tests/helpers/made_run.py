"""A run's folder as training and evaluation leave it: real shards of scenes, perturbed ground truth as predictions."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scenes import RELATIONAL_KINDS, scenes

from mres.config import Config
from mres.evaluate.iou import figures_of, intersection_union
from mres.evaluate.results import ExpressionResult, summarise, write_results
from mres.evaluate.trivial import trivial_answers
from mres.records import ImageRecord, Target, decode_masks, encode_mask, expression_id
from mres.shards.reader import ShardSet
from mres.shards.writer import write_shards
from mres.sources.source import RecordSource


def make_run(root: Path, *, num_images: int = 30, save_masks: bool = True) -> tuple[Path, ShardSet]:
    """`root`/runs/made and the shard set that it was "evaluated" on."""
    records = list(scenes(num_images, seed=3, split="val"))
    write_shards(RecordSource.of(list(records), {"format": "scenes"}), root / "val")
    shards = ShardSet(root / "val")
    run_dir = root / "runs" / "made"
    run_dir.mkdir(parents=True)
    results = [result for record in records for result in answers(record, save_masks=save_masks)]
    summary = summarise(
        results,
        threshold=0.5,
        checkpoint="runs/made/checkpoints/step-00001200",
        data={"folder": str(root / "val"), "fingerprint": shards.fingerprint, "split": "val"},
        trivial=trivial_answers(scenes(num_images, seed=3, split="train"), records),
    )
    write_results(run_dir, results, summary)
    write_training_files(run_dir, shards, results)
    return run_dir, shards


def write_training_files(run_dir: Path, shards: ShardSet, results: Sequence[ExpressionResult]) -> None:
    config = Config.model_validate({"data": {"train": "data/train", "val": shards.location}, "run": {"name": "made"}})
    (run_dir / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    facts = {"git_sha": "0123abc", "world_size": 2, "packages": {"torch": "2.14.1", "deepspeed": None}}
    (run_dir / "environment.json").write_text(json.dumps(facts), encoding="utf-8")
    (run_dir / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in metrics()), encoding="utf-8")
    final = figures_of(results)
    lines = [
        {
            "step": step,
            **{g: {**final[g], "mIoU": (final[g]["mIoU"] or 0) * (1 - math.exp(-step / 300))} for g in final},
        }
        for step in range(200, 1201, 200)
    ]
    (run_dir / "evaluations.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")


def metrics() -> Iterator[dict[str, float]]:
    random = np.random.default_rng(0)
    for step in range(10, 1201, 10):
        bce, dice = 0.2 * math.exp(-step / 300) + 0.04, 0.6 * math.exp(-step / 500) + 0.25
        bce, dice = (value * random.normal(1, 0.06) for value in (bce, dice))
        yield {
            "step": step,
            "epoch": step / 400,
            "images_seen": step * 16,
            "expressions_seen": step * 256,
            "loss": bce + dice,
            "loss_bce": bce,
            "loss_dice": dice,
            "lr": 2e-3 * min(step / 100, 0.5 * (1 + math.cos(math.pi * step / 1200))),
            "grad_norm": random.lognormal(0, 0.3),
            "step_s": 0.5,
            "data_wait_s": 0.004,
            "images_per_s": random.normal(30, 1),
            "expressions_per_s": random.normal(480, 16),
        }


def answers(record: ImageRecord, *, save_masks: bool = True) -> Iterator[ExpressionResult]:
    """A prediction an expression: mostly the truth a little off, at times a rival or the whole object."""
    masks_NHW = decode_masks([target.mask for target in record.targets]).astype(bool)
    for position, target in enumerate(record.targets):
        for index, expression in enumerate(target.expressions):
            id_ = expression_id(record, target, index)
            random = np.random.default_rng(list(id_.encode()))
            lost = random.random() < (0.4 if expression.kind in RELATIONAL_KINDS else 0.08)
            answered = _other(record.targets, position, random) if lost else position
            mask_HW = _perturbed(masks_NHW[answered], random)
            areas = intersection_union(mask_HW, masks_NHW[position])
            yield ExpressionResult.of(record, target, index, areas, encode_mask(mask_HW) if save_masks else None)


def _other(targets: Sequence[Target], position: int, random: np.random.Generator) -> int:
    others = [i for i, target in enumerate(targets) if target.granularity == targets[position].granularity]
    return int(random.choice(others))


def _perturbed(mask_HW: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Shifted by a pixel or two, grown or eaten at random along the rim, some pixels astray."""
    mask_HW = np.roll(mask_HW, random.integers(-1, 2, size=2), axis=(0, 1))
    near_HW = sum(np.roll(mask_HW, shift, axis) for shift in (-1, 1) for axis in (0, 1))
    rim_HW = (near_HW > 0) & (near_HW < 4)
    return np.where(rim_HW, random.random(mask_HW.shape) < random.uniform(0.2, 0.8), mask_HW)
