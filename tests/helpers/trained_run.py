"""A run with everything that a model card tells: trained, evaluated, its training set checked for held-out images."""

from dataclasses import dataclass
from pathlib import Path

import tiny_run
from tiny_data import make_record

from mres.shards.leaks import find_leaks
from mres.shards.manifest import Manifest
from mres.shards.writer import WriteOptions, write_shards
from mres.sources.source import RecordSource

# So little that the masks of a hardly trained model are neither empty nor full.
THRESHOLD = 0.12


@dataclass(frozen=True)
class Trained:
    """Where a run lies and what it was trained on."""

    folder: Path
    run: Path
    manifest: Manifest


def train_and_evaluate(folder: Path) -> Trained:
    """Into `folder`/tiny; two of the ten images that it trains on are held-out ones."""
    records = [make_record(i) for i in range(10)]
    write_shards(RecordSource.of(records, {"format": "tiny"}, "tiny"), folder / "train", WriteOptions(8))
    held_out = [make_record(20, split="val"), *records[:2]]
    write_shards(RecordSource.of(held_out, {"format": "tiny"}, "tiny"), folder / "val", WriteOptions(8))
    manifest = find_leaks(str(folder / "train"), [str(folder / "val")])
    config = tiny_run.write_config(folder, folder / "train")
    given = ["--config", str(config), f"run.dir={folder}", "run.name=tiny", f"data.val={folder / 'val'}"]
    given += ["train.steps=3", f"evaluate.threshold={THRESHOLD}", "optim.ema_decay=0.5"]
    for script, more in ((tiny_run.TRAIN, []), (tiny_run.EVALUATE, ["--checkpoint", str(folder / "tiny")])):
        done = tiny_run.run(script, given + more, folder)
        assert done.codes == [0], done.output
    return Trained(folder, folder / "tiny", manifest)
