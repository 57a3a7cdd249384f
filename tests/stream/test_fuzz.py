"""Whatever happens to the bytes of a set, it is refused with a message, or its damage is named and the rest streams."""

import io
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_data import make_record
from torch import Tensor

from mres.errors import UserError
from mres.records import ImageRecord, RecordError
from mres.shards.index import record_key
from mres.shards.reader import ShardSet
from mres.shards.verify import damages
from mres.shards.writer import WriteOptions, write_shards
from mres.sources.source import RecordSource
from mres.stream.batch import Batch, StreamShape
from mres.stream.config import AugmentConfig, DataConfig
from mres.stream.image import square_image
from mres.stream.loader import TrainingStream
from mres.stream.sets import TrainingSets
from mres.stream.transforms import augmented

SHAPE = StreamShape(side=32, stride=2, text_length=6)
NUM_IMAGES, STEPS = 7, 2  # in batches of 4
CONFIG = {"images_per_batch": 4, "expressions_per_image": 3, "workers": 0, "augment": AugmentConfig(zoom=(0.7, 1.4))}


def as_jpeg(record: ImageRecord) -> ImageRecord:
    with Image.open(io.BytesIO(record.image)) as image, io.BytesIO() as buffer:
        image.save(buffer, "JPEG")
        return replace(record, image=buffer.getvalue())


RECORDS = [make_record(i) if i % 3 else as_jpeg(make_record(i)) for i in range(NUM_IMAGES)]


@pytest.fixture(scope="module", params=["tar", "mds"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param) / "set"
    write_shards(RecordSource.of(RECORDS, {"format": "tiny"}), folder, WriteOptions(4, layout=request.param))
    return folder


def tokenize(texts: Sequence[str]) -> tuple[Tensor, int]:
    return torch.zeros(len(texts), SHAPE.text_length, dtype=torch.int32), 0


def epoch(folder: Path, world_size: int) -> list[list[Batch]]:
    """What each rank draws in an epoch."""
    ranks = []
    for rank in range(world_size):
        sets = TrainingSets([ShardSet(folder)])
        config = DataConfig(train=str(folder), **CONFIG)
        stream = TrainingStream(sets, config, SHAPE, tokenize, seed=1, rank=rank, world_size=world_size)
        ranks.append(list(stream.batches(0, STEPS)))
    return ranks


def assert_same(one: list[list[Batch]], ranks: list[list[Batch]]) -> None:
    for whole, *parts in zip(one[0], *ranks, strict=True):
        for name in ("image_ids", "expression_ids", "bad"):
            assert getattr(whole, name) == tuple(value for part in parts for value in getattr(part, name))
        assert torch.equal(whole.image_BCSS, torch.cat([part.image_BCSS for part in parts]))
        assert torch.equal(whole.mask_BKhh, torch.cat([part.mask_BKhh for part in parts]))


def damage(content: bytes, how: str, random: Random) -> bytes:
    """Other bytes than `content`."""
    at = random.randrange(len(content))
    length = min(random.choice((1, 4, 60, 2000)), len(content) - at)
    changed = {
        "flip": lambda: content[:at] + bytes([content[at] ^ 1 << random.randrange(8)]) + content[at + 1 :],
        "garbage": lambda: content[:at] + random.randbytes(length) + content[at + length :],
        "zeros": lambda: content[:at] + bytes(length) + content[at + length :],
        "cut": lambda: content[:at],
        "hole": lambda: content[:at] + content[at + length :],
        "longer": lambda: content + random.randbytes(length),
        "doubled": lambda: content[: at + length] + content[at:],
        "text": lambda: (
            content[:at] + random.choice((b"NaN", b"-1", b'"', b"{", b"\xff", b"1e999")) + content[at + 1 :]
        ),
    }[how]()
    return changed if changed != content else content[:at]


DAMAGE = st.sampled_from(["flip", "garbage", "zeros", "cut", "hole", "longer", "doubled", "text"])
SEED = st.integers(0, 2**32)


def touched(folder: Path, name: str, before: bytes, after: bytes) -> set[str]:
    """Keys of the records of which a byte has changed."""
    shards = ShardSet(folder)
    numbers = [number for number, shard in enumerate(shards.manifest.shards) if shard.name == name]
    return {
        record_key(int(row["key"]))
        for row in shards.index_N
        if int(row["shard"]) in numbers
        and before[(start := int(row["offset"])) : (end := start + int(row["size"]))] != after[start:end]
    }


@given(how=DAMAGE, seed=SEED)
def test_a_damaged_shard(whole: Path, how: str, seed: int) -> None:
    random = Random(seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(shutil.copytree(whole, Path(temporary) / "set"))
        shard = random.choice(sorted(folder.glob("shard-*")))
        before = shard.read_bytes()
        shard.write_bytes(damage(before, how, random))
        assert damages(str(folder)), "verify finds every changed byte"
        if shard.stat().st_size != len(before):
            with pytest.raises(UserError, match=f"'{shard}' has .* bytes, its manifest says"):
                epoch(folder, 1)
            return
        one = epoch(folder, 1)
        expected = touched(folder, shard.name, before, shard.read_bytes())
        found = {message.removeprefix(f"{shard}: ").split(": ")[0] for batch in one[0] for message in batch.bad}
        assert found == expected
        spoilt = {f"im{int(key)}" for key in expected}
        drawn = [image_id for batch in one[0] for image_id in batch.image_ids]
        assert not spoilt & set(drawn)
        assert len(drawn) == NUM_IMAGES, "substitutes fill every place"
        assert_same(one, epoch(folder, 2))


@given(name=st.sampled_from(["index.npy", "manifest.json"]), how=DAMAGE, seed=SEED)
def test_damaged_descriptions(whole: Path, name: str, how: str, seed: int) -> None:
    random = Random(seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(shutil.copytree(whole, Path(temporary) / "set"))
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(damage(before, how, random))
        if name == "manifest.json" and _says_the_same(before, (folder / name).read_bytes()):
            return
        with pytest.raises(UserError) as refused:
            epoch(folder, 1)
        assert str(folder) in str(refused.value)
        assert "\n" not in str(refused.value)
        assert damages(str(folder))


def _says_the_same(before: bytes, after: bytes) -> bool:
    try:
        return json.loads(before) == json.loads(after)
    except (ValueError, RecursionError):
        return False


@given(missing=st.sets(st.sampled_from(["shard-000000", "shard-000001", "index.npy", "manifest.json"]), min_size=1))
def test_missing_files(whole: Path, missing: set[str]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(shutil.copytree(whole, Path(temporary) / "set"))
        for path in folder.iterdir():
            if any(path.name.startswith(name) for name in missing):
                path.unlink()
        with pytest.raises(UserError, match=str(folder)):
            epoch(folder, 1)


@given(number=st.integers(0, NUM_IMAGES - 1), how=DAMAGE, seed=SEED)
def test_a_damaged_image_is_named_or_decoded(number: int, how: str, seed: int) -> None:
    record = RECORDS[number]
    random = Random(seed)
    spoilt = replace(record, image=damage(record.image, how, random))
    geometry = augmented(record, 32, DataConfig(**CONFIG), np.random.default_rng(seed))
    image_CSS = torch.zeros((3, 32, 32), dtype=torch.uint8)
    message = ""
    try:
        square_image(spoilt, geometry, image_CSS, "here")
    except RecordError as error:
        message = str(error)
    assert not message or message.startswith(f"here: record 'im{number}': the image ")


@given(seed=SEED, damaged=st.sets(st.integers(0, NUM_IMAGES - 1), min_size=1, max_size=4))
def test_images_that_were_damaged_before_the_build_are_listed(seed: int, damaged: set[int]) -> None:
    """What a build lets pass can be streamed; the records beside it are what they were."""
    random = Random(seed)
    hows = ["flip", "garbage", "zeros", "cut", "hole", "longer", "doubled"]
    records = [
        replace(record, image=damage(record.image, random.choice(hows), random)) if i in damaged else record
        for i, record in enumerate(RECORDS)
    ]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "set"
        manifest = write_shards(RecordSource.of(records, {}, "own"), folder, WriteOptions(4, max_bad_fraction=0.6))
        listed = (folder / "quarantine.jsonl").read_text().splitlines() if manifest.counts.quarantined else []
        left_out = {int(json.loads(line)["error"].split("'im")[1].split("'")[0]) for line in listed}
        assert left_out <= damaged
        assert len(left_out) == len(listed) == manifest.counts.quarantined
        shards = ShardSet(folder)
        kept = [i for i in range(NUM_IMAGES) if i not in left_out]
        assert [shards.read(row) for row in range(len(shards))] == [records[i] for i in kept]
        assert damages(str(folder)) == []
        assert [message for batch in epoch(folder, 1)[0] for message in batch.bad] == []
