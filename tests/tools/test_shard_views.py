"""`shard.py filter`, `merge`, `leakcheck`, `info` and `verify` as commands: what they make, and what they refuse."""

import json
import shutil
from pathlib import Path

import pytest
from made_jsonl import BUILD, content, done, jpeg, make_data, record, refused, shard, write

from mres.shards.reader import ShardSet

pytestmark = pytest.mark.slow


def make_set(folder: Path) -> Path:
    """A user's data with the set `out` built of it in shards of 2."""
    data = make_data(folder / "data", 5)
    done(data, *BUILD, "--images-per-shard", "2", "--workers", "0")
    return data


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_set(tmp_path)


@pytest.fixture(scope="module")
def status(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, for commands that change nothing."""
    data = make_set(tmp_path_factory.mktemp("status"))
    (data / "empty.txt").write_text("\n \n")
    (data / "wrong.txt").write_text("im1\nim7\n")
    return data


def ids(folder: Path) -> list[str]:
    shards = ShardSet(folder)
    return [shards.read(i).id for i in range(len(shards))]


def flip_a_bit(tar: Path) -> None:
    damaged = bytearray(tar.read_bytes())
    damaged[1000] ^= 4
    tar.write_bytes(damaged)


def test_filter_makes_a_view_and_a_view_of_it(data: Path) -> None:
    (data / "some.txt").write_text("im1\n\nim3\n im4 \n")
    printed = done(data, "filter", "out", "view", "--ids", "some.txt")
    assert printed.startswith("view: 3 images in 3 shards")
    assert ids(data / "view") == ["im1", "im3", "im4"]
    assert sorted(path.name for path in (data / "view").iterdir()) == ["digests.npy", "index.npy", "manifest.json"]
    done(data, "filter", "view", "nested", "--split", "train", "--min-expressions", "2")
    assert ids(data / "nested") == ["im1", "im4"]
    shutil.rmtree(data / "view")
    assert ids(data / "nested") == ["im1", "im4"], "the files lie in the set, not in the view that it was made of"
    assert done(data, "verify", "nested") == "nested: every hash fits, every record is readable\n"
    described = json.loads(done(data, "info", "nested", "--json"))
    assert described["counts"]["images_by_split"] == {"train": 2}
    assert [part["folder"] for part in described["parts"]] == ["../out"]
    assert "part" in done(data, "info", "nested")


def test_merge_shows_several_sets_as_one(data: Path, tmp_path_factory) -> None:
    write(data, [{**record(i), "id": f"other{i}"} for i in range(3)])
    done(data, "build", "jsonl", "second", "--records", "own.jsonl")
    done(data, "filter", "out", "view", "--split", "val")
    done(data, "merge", "all", "second", "view")
    assert ids(data / "all") == ["other0", "other1", "other2", "im3"]
    moved = tmp_path_factory.mktemp("elsewhere") / "data"
    shutil.move(data, moved)
    assert ids(moved / "all") == ["other0", "other1", "other2", "im3"], "views go along with the sets beside them"
    shutil.rmtree(moved / "second")
    assert "second': the folder does not exist" in refused(moved, "info", "all")


def test_a_view_of_another_set_by_now_is_refused(data: Path) -> None:
    done(data, "filter", "out", "view", "--split", "train")
    write(data, [record(i) for i in range(4)])
    done(data, *BUILD, "--overwrite")
    for command in ("info", "filter"):
        more = ("again", "--split", "train") if command == "filter" else ()
        assert "which is another set now" in refused(data, command, "view", *more)
    result = shard(data, "verify", "view")
    assert (result.returncode, result.stdout.count("damaged: ")) == (1, 1)
    assert "make the view again" in result.stdout


def test_verify_of_a_flipped_bit(data: Path) -> None:
    done(data, "filter", "out", "view", "--split", "val")
    flip_a_bit(data / "out/shard-000001.tar")
    for name, workers in (("out", "0"), ("out", "2")):
        result = shard(data, "verify", name, "--workers", workers)
        assert (result.returncode, result.stderr) == (1, "")
        (line,) = result.stdout.splitlines()
        assert line.startswith("damaged: out/shard-000001.tar: 00000002: damaged: the checksum")
    result = shard(data, "verify", "view")
    assert result.returncode == 1, "the view's record is whole, the file around it is not"
    assert "its sha256 is not the manifest's, between or after its records" in result.stdout


def test_leakcheck_finds_what_filter_drops(data: Path) -> None:
    held_out = make_data(data / "held-out", 0)
    (held_out / "images/0.jpg").write_bytes(jpeg(2))
    write(held_out, [{**record(0), "id": "elsewhere"}])
    done(held_out, *BUILD)
    assert "was not checked for leaks" in refused(data, "filter", "out", "clean", "--drop-leaks")
    assert "not done" in done(data, "info", "out")
    before = ShardSet(data / "out").fingerprint
    printed = done(data, "leakcheck", "out", "--against", "held-out/out")
    assert printed.startswith("out: 1 of 5 images are among the 1 held-out ones (0 by COCO id, 1 by perceptual hash)\n")
    assert ShardSet(data / "out").fingerprint == before, "a run goes on after a leak check"
    (leak,) = (data / "out/leaks.jsonl").read_text().splitlines()
    assert json.loads(leak)["id"] == "im2"
    assert "1 of 5 images are held-out ones" in " ".join(done(data, "info", "out").split())
    done(data, "filter", "out", "clean", "--drop-leaks")
    assert ids(data / "clean") == ["im0", "im1", "im3", "im4"]
    (data / "out/leaks.jsonl").write_text("")
    assert "run tools/shard.py leakcheck again" in refused(data, "filter", "out", "clean2", "--drop-leaks")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("filter out view", "filter needs a condition"),
        ("filter nowhere view --split val", "no shard set at 'nowhere': the folder does not exist"),
        ("filter out view --split trian", "'out' has no split 'trian'; it has train, val"),
        ("filter out view --spilt val", "unrecognized arguments: --spilt"),
        ("filter out view --ids none.txt", "cannot read the ids in 'none.txt': "),
        ("filter out view --ids empty.txt", "'empty.txt' names no id; expected one a line"),
        ("filter out view --ids wrong.txt", "1 of the 2 ids of --ids are not in 'out': 'im7'"),
        ("filter out view --without-ids wrong.txt", "1 of the 2 ids of --without-ids are not in 'out': 'im7'"),
        ("filter out view --ids images/0.jpg", "cannot read the ids in 'images/0.jpg': "),
        ("filter out view --with part", 'no record of \'out\' fulfils {"granularity": "part"}'),
        ("filter out view --with parts", "invalid choice: 'parts'"),
        ("filter out view --min-expressions 3", 'fulfils {"min_expressions": 3}'),
        ("filter out view --min-expressions -1", "--min-expressions -1; allowed: 0 and more"),
        ("filter out images --split val", "exists and is not empty; give another folder"),
        ("filter out images --split val --overwrite", "is not a shard set, so --overwrite does not remove it"),
        ("filter out out --split val --overwrite", "out', whose records it shows; give it another folder"),
        ("filter s3://bucket/set view --split val", "views are made of local sets"),
        ("merge view out", "merge needs at least two sets"),
        ("merge view out nowhere", "no shard set at 'nowhere': the folder does not exist"),
        ("merge view out out", "record 'im0' is in 'out' and in 'out', and a set has an id once"),
        ("merge out out out --overwrite", "whose records it shows"),
        ("leakcheck out --against nowhere", "no shard set at 'nowhere'"),
        ("leakcheck out --against out", "'out' (--against) is the set itself"),
        ("leakcheck out --against out --max-distance 20", "--max-distance 20; allowed: 0 to 16 of 64 bits"),
        ("leakcheck out", "the following arguments are required: --against"),
        ("leakcheck s3://bucket/set --against out", "is remote; check it where it lies"),
        ("info own.jsonl", "no shard set at 'own.jsonl': it is not a folder"),
        ("info", "the following arguments are required: set"),
        ("verify out.incomplete", "no shard set at 'out.incomplete': the folder does not exist"),
        ("verify nonsense://x/set", "fsspec knows no 'nonsense://'"),
    ],
)
def test_a_wrong_command_says_what_is_wrong(command: str, message: str, status: Path) -> None:
    before = content(status / "out")
    error = refused(status, *command.split())
    assert message in error
    assert error.count("error: ") == 1
    assert content(status / "out") == before


def test_a_view_is_replaced_only_if_asked(data: Path) -> None:
    done(data, "filter", "out", "view", "--split", "train")
    assert "--overwrite to replace it" in refused(data, "filter", "out", "view", "--split", "val")
    done(data, "filter", "out", "view", "--split", "val", "--overwrite")
    assert ids(data / "view") == ["im3"]
    assert "whose records it shows" in refused(data, "filter", "view", "out", "--split", "val", "--overwrite")
    assert ids(data / "out") == [f"im{i}" for i in range(5)]
