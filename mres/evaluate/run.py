"""The command line of evaluation; refuses what it can before torch loads."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mres.cli import config_parser, parse
from mres.config import Config
from mres.errors import UserError
from mres.io.local import check_local
from mres.io.progress import track
from mres.records import ImageRecord, RecordError
from mres.shards.reader import ShardSet
from mres.shards.storage import is_remote
from mres.stream.sets import open_set

if TYPE_CHECKING:
    from mres.evaluate.results import ExpressionResult


def main(argv: Sequence[str]) -> int:
    """Runs `launch/evaluate.py` with `argv`.

    Raises:
        UserError: a config, path, checkpoint or environment that cannot work.
    """
    parser = config_parser(
        "launch/evaluate.py",
        "Evaluates a checkpoint on the shard set that data.split names; every expression once, at original resolution.",
        "example: python launch/evaluate.py --config configs/demo.yaml --checkpoint runs/demo data.split=val",
    )
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="a run's folder, a checkpoint or a .safetensors file"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of results.json and results.jsonl (of data.split=test: results-test.json …); default: run.dir/run.name",
    )
    parser.add_argument("--json", action="store_true", help="print results.json instead of the table")
    arguments, config = parse(parser, argv)
    out = arguments.out or config.run_dir
    check_local(out)
    shards = held_out(config)
    sample = constant_sample(config, shards)
    summary = evaluate(config, shards, sample, arguments.checkpoint, out)
    if summary is not None and arguments.json:
        print(json.dumps(summary, indent=1))
    elif summary is not None:
        from mres.evaluate.table import print_tables

        print_tables(summary)
    return 0


def held_out(config: Config) -> ShardSet:
    """The shard set that `data.split` names.

    Raises:
        UserError: it is not set, or not a shard set.
    """
    folder = getattr(config.data, config.data.split)
    if folder is None:
        raise UserError(f"data.split={config.data.split} and data.{config.data.split} is not set; name a shard folder")
    if not isinstance(folder, str):
        raise UserError(
            f"data.split={config.data.split} names {len(folder)} sets, and one is evaluated at a time; name it in data.val"
        )
    return open_set(folder, config.data)


def evaluate(config: Config, shards: ShardSet, sample: ShardSet, checkpoint: Path, out: Path) -> dict[str, Any] | None:
    """Evaluates and writes the results into `out`; the content of results.json on rank 0, None elsewhere."""
    from mres.evaluate.evaluator import Evaluator
    from mres.model.task import SegmentationTask
    from mres.parallel.config import ParallelConfig
    from mres.parallel.factory import build_strategy
    from mres.pretrained.whole import load_weights
    from mres.supervise.threads import set_threads
    from mres.supervise.world import join_world, leave_world

    # Every rank holds the whole model and takes its share of the images; only objects and counts cross ranks.
    parallel = ParallelConfig(strategy="ddp")
    world = join_world(parallel.timeout_s)
    try:
        set_threads(config.train.threads)
        task = SegmentationTask(config.model, config.loss)
        model = task.build(config.run.seed)
        restored = load_weights(model, config.model, checkpoint, config.evaluate.weights)
        try:  # before the work, not after it
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write the results into '{out}': {error}; name another folder with --out") from None
        evaluator = Evaluator(config, shards, task, build_strategy(parallel, world))
        results = evaluator.results(model.to(world.device))
        return None if results is None else _write_down(config, shards, sample, results, restored.source, out)
    finally:
        leave_world()


def _write_down(
    config: Config, shards: ShardSet, sample: ShardSet, results: list[ExpressionResult], checkpoint: str, out: Path
) -> dict[str, Any]:
    """Rank 0 sets the trivial answers beside the model's and writes both down."""
    from mres.evaluate.results import name_for, others, summarise, write_results
    from mres.evaluate.trivial import trivial_answers
    from mres.formats.folder import manifest_sha256

    # Absolute: from another folder, a relative one would name another set.
    folder = shards.location if is_remote(shards.location) else os.path.abspath(shards.location)
    data = {"folder": folder, "fingerprint": shards.fingerprint, "split": config.data.split}
    held_out_records = track(map(shards.annotations, range(len(shards))), len(shards), "trivial answers")
    summary = summarise(
        results,
        threshold=config.evaluate.threshold,
        checkpoint=checkpoint,
        data=data,
        weights=config.evaluate.weights,
        manifest_sha256=manifest_sha256(Path(checkpoint)),
        trivial=trivial_answers(_readable(sample), held_out_records),
    )
    name = name_for(out, data)
    if there := others(out, name, summary):
        print(f"note: in '{out}', the results of {there} are replaced", file=sys.stderr)
    write_results(out, results, summary, name)
    print(f"results: {out / name}.json and {name}.jsonl", file=sys.stderr)
    if cut := summary["cut_expressions"]:
        print(
            f"warning: {cut:,} of {len(results):,} expressions are longer than the model reads and lost their end "
            f"(model.text_length; cut_expressions in {out / name}.json)",
            file=sys.stderr,
        )
    return summary


# The best constant mask is a mean; more images than this no longer move it.
_CONSTANT_SAMPLE = 500


def constant_sample(config: Config, shards: ShardSet) -> ShardSet:
    """Where the best constant mask is learned: the (first) training set, or the held-out one if that is not at hand."""
    if not config.data.train_sets:
        return shards
    try:
        return open_set(config.data.train_sets[0].path, config.data)
    except UserError as error:
        print(f"warning: {error}; the best constant mask is taken from the held-out set itself", file=sys.stderr)
        return shards


def _readable(sample: ShardSet) -> Iterator[ImageRecord]:
    """The first records that can be read; broken ones were counted when training met them, and a mean can miss them."""
    for index in range(min(len(sample), _CONSTANT_SAMPLE)):
        try:
            yield sample.annotations(index)
        except RecordError as error:
            print(f"warning: left out of the constant mask: {error}", file=sys.stderr)
