"""`launch/evaluate.py`: every expression exactly once, the same figures on any number of ranks."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_data import make_record
from tiny_run import EVALUATE, TRAIN, Done, lines, run, write_config

from mres.model.text import Tokenizer
from mres.records import expression_id
from mres.shards.reader import ShardSet


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_shards: Path) -> Path:
    """A folder with a config and a run of a few steps, evaluated on the way."""
    folder = tmp_path_factory.mktemp("trained")
    config = write_config(folder, tiny_shards)
    done = run(TRAIN, ["--config", str(config), "train.steps=8", "evaluate.every=4"], folder)
    assert done.codes == [0], done.output
    return folder


def evaluate(folder: Path, out: str, *arguments: str, checkpoint: str = "runs/run", **options) -> Done:
    words = ["--config", str(folder / "tiny.yaml"), "--checkpoint", checkpoint, "--out", out, *arguments]
    return run(EVALUATE, words, folder, **options)


def test_every_expression_once_and_the_same_on_any_number_of_ranks(trained: Path) -> None:
    options = ["evaluate.images_per_batch=3"]
    for world_size in (1, 2, 3):
        done = evaluate(trained, f"world-{world_size}", *options, world_size=world_size)
        assert done.codes == [0] * world_size, done.outputs
    first, second, third = ((trained / f"world-{n}" / "results.jsonl").read_bytes() for n in (1, 2, 3))
    assert first == second == third
    summaries = [json.loads((trained / f"world-{n}" / "results.json").read_text()) for n in (1, 2, 3)]
    assert summaries[0] == summaries[1] == summaries[2]
    records = [make_record(i) for i in range(22)]
    expected = [expression_id(record, target, i) for record in records for target, i in record.pairs()]
    found = lines(trained / "world-1" / "results.jsonl")
    assert [line["expression_id"] for line in found] == expected
    assert summaries[0]["num_expressions"] == len(expected)
    for line in found:
        assert 0 <= line["intersection"] <= line["union"]
    numbers = {g: sum(line["granularity"] == g for line in found) for g in ("object", "part")}
    assert {g: summaries[0][g]["num"] for g in numbers} == numbers


def test_workers_and_batches_do_not_change_the_figures_beyond_rounding(trained: Path) -> None:
    assert evaluate(trained, "plain").codes == [0]
    assert evaluate(trained, "others", "data.workers=1", "evaluate.images_per_batch=5").codes == [0]
    plain, others = (json.loads((trained / name / "results.json").read_text()) for name in ("plain", "others"))
    for granularity in ("object", "part", "object_part"):
        assert others[granularity]["mIoU"] == pytest.approx(plain[granularity]["mIoU"], abs=1e-3)


def test_the_evaluation_during_training_is_the_command(trained: Path) -> None:
    during = lines(trained / "runs" / "run" / "evaluations.jsonl")
    assert [line["step"] for line in during] == [4, 8]
    done = evaluate(trained, "after", "--json")
    assert done.codes == [0], done.output
    summary = json.loads((trained / "after" / "results.json").read_text())
    assert json.loads(done.output[done.output.index("{\n") :]) == summary
    for granularity in ("object", "part", "object_part"):
        assert during[-1][granularity]["mIoU"] == pytest.approx(summary[granularity]["mIoU"], abs=1e-6)
    assert summary["checkpoint"].endswith("step-00000008")


def test_expressions_longer_than_the_model_reads_are_counted(tmp_path: Path, tiny_shards: Path) -> None:
    config = write_config(tmp_path, tiny_shards)
    short = ["model.text_length=8", "evaluate.every=2"]
    assert run(TRAIN, ["--config", str(config), *short, "train.steps=2"], tmp_path).codes == [0]
    done = evaluate(tmp_path, "cut", *short)
    assert done.codes == [0], done.output
    texts = [target.expressions[i].text for record in map(make_record, range(22)) for target, i in record.pairs()]
    expected = sum(Tokenizer(1024, 8)([text])[1] for text in texts)
    assert 0 < expected < len(texts)
    summary = json.loads((tmp_path / "cut" / "results.json").read_text())
    assert summary["cut_expressions"] == expected
    assert sum(line.get("cut", False) for line in lines(tmp_path / "cut" / "results.jsonl")) == expected
    assert lines(tmp_path / "runs" / "run" / "evaluations.jsonl")[0]["cut_expressions"] == expected
    assert f"{expected} of {len(texts)} expressions are longer than the model reads" in done.output


def refused(done: Done, *words: str) -> None:
    assert set(done.codes) == {2}, done.outputs
    everything = "".join(done.outputs)
    assert everything.count("error: ") == 1, everything
    assert "Traceback" not in everything
    for word in words:
        assert word in everything


def test_mistakes(trained: Path, tmp_path: Path) -> None:
    (trained / "nothing").mkdir()
    refused(evaluate(trained, "x", checkpoint="nowhere"), "no such checkpoint or run: 'nowhere'")
    refused(evaluate(trained, "x", checkpoint="nothing"), "no finished checkpoint in 'nothing'")
    refused(evaluate(trained, "x", "data.split=test"), "data.split=test and data.test is not set")
    refused(evaluate(trained, "x", "data.split=vla"), "data.split = 'vla': Input should be 'train', 'val' or 'test'")
    refused(evaluate(trained, "x", "data.val=nothing"), "no shard set at 'nothing': the folder is empty")
    refused(evaluate(trained, "x", "model.decoder_width=64"), "model.decoder_width was 32 and is now 64")
    refused(evaluate(trained, "tiny.yaml"), "cannot write the results into 'tiny.yaml'")
    refused(evaluate(trained, "x", "data.val=nothing", world_size=2), "no shard set at 'nothing'")


def test_a_broken_record_ends_the_evaluation_on_all_ranks(trained: Path, tiny_shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(tiny_shards, folder)
    row = ShardSet(folder).index_N[13]
    with (folder / "shard-000001.tar").open("r+b") as tar:
        tar.seek(int(row["offset"]) + int(row["image_offset"]) + 100)
        tar.write(b"damaged")
    for workers in (0, 1):
        arguments = [f"data.val={folder}", f"data.workers={workers}", "evaluate.images_per_batch=4"]
        done = evaluate(trained, "x", *arguments, world_size=2)
        refused(done, f"{folder}/shard-000001.tar: 00000013: damaged")
