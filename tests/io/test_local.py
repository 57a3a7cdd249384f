"""Nothing is written to a store: a URL as an output is refused by every command, its secret never printed."""

from pathlib import Path

import pytest
from commands import command
from tiny_data import make_record

import mres
from mres.config import load_config
from mres.errors import UserError
from mres.io.local import check_local

SECRET = "hunter2"
URL = f"s3://AKIA:{SECRET}@bucket/own"
OUTPUTS = [
    ("tools/shard.py", "build", "scenes", URL, "--num-images", "2", "--workers", "0"),
    ("tools/shard.py", "build", "jsonl", URL, "--records", "own.jsonl", "--overwrite"),
    ("tools/shard.py", "filter", "SET", URL, "--min-expressions", "1"),
    ("tools/shard.py", "merge", URL, "SET", "SET"),
    ("tools/export.py", "SET", URL),
    ("tools/convert.py", "SET", URL, "--to", "safetensors"),
    ("tools/predict.py", "--checkpoint", "SET", "--image", "a.jpg", "--text", "a", "--out", URL + ".png"),
    ("tools/report.py", "SET", "--picture", URL + ".png"),
    ("launch/evaluate.py", "--config", "own.yaml", "--checkpoint", "SET", "--out", URL),
    ("launch/evaluate.py", "--config", "own.yaml", "--checkpoint", "SET", "run.dir=s3://bucket/runs"),
    ("launch/train.py", "--config", "own.yaml", "run.dir=s3://bucket/runs", "data.train=SET"),
    ("launch/train.py", "--config", "own.yaml", "run.dir=s3://bucket/runs", "data.train=SET", "--dry-run"),
    ("launch/train.py", "--config", "own.yaml", "data.cache_dir=s3://bucket/runs", "data.train=SET"),
    ("launch/submit.py", "--config", "own.yaml", "run.dir=s3://bucket/runs", "--cluster", "local", "--dry-run"),
]


@pytest.mark.parametrize("words", OUTPUTS, ids=lambda words: " ".join(words[:2]))
def test_no_command_makes_folders_of_a_url(words: tuple[str, ...], tiny_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("model: {size: tiny}\n")
    there = sorted(tmp_path.rglob("*"))
    done = command(*(word.replace("SET", str(tiny_shards)) for word in words), folder=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "writes to no store" in done.stderr
    assert "'s3://bucket/" in done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert "AKIA" not in done.stdout + done.stderr
    assert sorted(tmp_path.rglob("*")) == there


def test_nor_do_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="copy it to 's3://bucket/x'"):
        mres.write_shards([make_record(0)], "s3://bucket/x")
    with pytest.raises(UserError, match="copy it to 'gs://bucket/runs'"):
        _ = load_config(None, ["run.dir=gs://bucket/runs"]).run_dir
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["out", "./a:b/c", "/mnt/nas:/x", "c:", "runs/s3:x", ".", "x:/data"])
def test_what_only_looks_alike_is_a_folder(out: str) -> None:
    check_local(out)
    check_local(Path(out))


@pytest.mark.parametrize("out", ["S3://b/x", "file:///data/x", "simplecache::s3://b/x", Path("https://host/x")])
def test_a_url_in_any_form_is_none(out: str | Path) -> None:
    with pytest.raises(UserError, match="no store"):
        check_local(out)
