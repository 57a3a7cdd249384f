"""Ten thousand inputs, mutated or made by a grammar, for every reader: each is read, or refused by one message.

Every family's inputs run in forks of little memory under a watchdog: a traceback, a hang, a crash of native code and
gigabytes are all seen for what they are. Seeds are fixed; what fails names its family and number.
"""

import io
import json
import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from bounded import bounded_each
from made_coco import annotation, rectangle, run_lengths, write_coco
from made_jsonl import make_data
from made_records import HEIGHT, WIDTH, make_image, make_record
from made_refer import annotation as refer_annotation
from made_refer import ref, write_data
from mutation import NUMBERS, changed_bytes, changed_json, changed_value, odd_value
from PIL import Image

from mres.records import RecordError
from mres.sources.source import RecordSource

Read = Callable[[bytes], Any]
Change = Callable[[bytes, Random], bytes]


@dataclass(frozen=True)
class Family:
    """Good inputs, how they are changed, and what reads one; `count` of them are tried."""

    seeds: list[bytes]
    change: Change
    read: Read
    count: int


def _image(suffix: str, **options: Any) -> bytes:
    with io.BytesIO() as buffer:
        mode = options.pop("mode", "RGB")
        Image.new(mode, (WIDTH, HEIGHT), options.pop("colour", None) or 0).save(buffer, suffix, **options)
        return buffer.getvalue()


def _images(suffix: str, seeds: list[bytes]) -> Family:
    from mres.shards.check import check_record

    record = make_record(0)
    return Family(seeds, changed_bytes, lambda content: check_record(replace(record, image=content), "here"), 1500)


def jpeg(folder: Path) -> Family:
    return _images(
        "jpeg", [make_image(1), _image("JPEG", progressive=True), _image("JPEG", mode="CMYK"), _image("JPEG", mode="L")]
    )


def png(folder: Path) -> Family:
    modes = [_image("PNG", mode=mode) for mode in ("RGB", "RGBA", "P", "L", "1", "I;16")]
    return _images("png", [make_image(1, suffix="PNG"), *modes])


def rle(folder: Path) -> Family:
    from mres.record_checks import record_from_json
    from mres.record_json import record_to_json
    from mres.rle import decode_masks

    record = make_record(0)
    target = record.targets[0]

    def read(content: bytes) -> str:
        value = record_to_json(record, "image")
        value["targets"][0]["mask"]["counts"] = content.decode("latin-1")
        made = record_from_json(value, record.image, "here")
        return str(
            decode_masks([mask.counts for mask in (t.mask for t in made.targets)], record.height, record.width).sum()
        )

    return Family([target.mask.counts, b"0" * 40, b"PPPPo" * 8], changed_bytes, read, 1500)


def polygons(folder: Path) -> Family:
    """Made by a grammar: lists of lists of numbers, of which some are none."""
    from mres.sources.coco_masks import annotation_mask

    def make(_: bytes, random: Random) -> bytes:
        def coordinate() -> Any:
            return (
                odd_value(random) if random.random() < 0.03 else random.choice((random.uniform(-20, 60), *NUMBERS[:6]))
            )

        pieces: list[Any] = [[coordinate() for _ in range(random.randrange(14))] for _ in range(random.randrange(4))]
        if random.random() < 0.2:
            pieces = [[[coordinate(), coordinate()] for _ in range(random.randrange(7))]]
        if random.random() < 0.2:
            counts = random.choice(([random.randrange(900) for _ in range(9)], "PPYo1", odd_value(random)))
            return json.dumps({"size": random.choice(([20, 40], odd_value(random))), "counts": counts}).encode()
        return json.dumps(odd_value(random) if random.random() < 0.1 else pieces).encode()

    return Family([b""], make, lambda content: annotation_mask(json.loads(content), 20, 40, "here", Counter()), 1500)


def _all_of(source: RecordSource) -> str:
    """Every record is made, or refused by name; the first that is refused, once all were tried."""
    refused = []
    for number in range(len(source)):
        try:
            source[number]
        except RecordError as error:
            refused.append(error)
    if refused:
        raise refused[0]
    return f"{len(source)} {dict(source.notes)}"


def coco(folder: Path) -> Family:
    from mres.sources.coco import coco_parts

    annotations = [annotation(1, 1, [rectangle(2, 3, 10, 8)]), annotation(2, 2, run_lengths(4, 4, 3, 3), iscrowd=1)]
    annotations.append(annotation(3, 1, [rectangle(1, 1, 4, 4)], 2))
    write_coco(folder, ["car", "wheel"], annotations, ("000000000001.jpg", "000000000002.jpg"))

    path, images = folder / "annotations.json", folder / "images"

    def read(content: bytes) -> str:
        path.write_bytes(content)
        return _all_of(coco_parts(path, images, "train", val_images=0, seed=0, whole="body"))

    return Family([path.read_bytes()], changed_json, read, 700)


def refer(folder: Path) -> Family:
    from mres.sources.refer import refer

    data = folder / "refcoco"
    instances = [refer_annotation(11, 1, [rectangle(1, 1, 9, 9)]), refer_annotation(12, 2, run_lengths(2, 2, 5, 5))]
    write_data(data, "refs(unc).p", [ref(1, 11, 1, "val", "the man"), ref(2, 12, 2, "val", "a", "b")], instances)
    path = data / "refs(unc).p"

    def change(content: bytes, random: Random) -> bytes:
        if random.random() < 0.5:
            return changed_bytes(content, random)
        return pickle.dumps(changed_value(pickle.loads(content), random), protocol=random.choice((0, 2, 4)))

    def read(content: bytes) -> str:
        path.write_bytes(content)
        return _all_of(refer(folder, "refcoco", "val", folder / "train2014", accept_counts=True))

    return Family([path.read_bytes()], change, read, 700)


def jsonl(folder: Path) -> Family:
    from mres.sources.mres_jsonl import mres_jsonl

    path = make_data(folder / "own", 2) / "own.jsonl"

    def read(content: bytes) -> str:
        path.write_bytes(content)
        return _all_of(mres_jsonl(path, split=None))

    def change(content: bytes, random: Random) -> bytes:
        return b"\n".join(changed_json(line, random) for line in content.splitlines())

    return Family([path.read_bytes()], change, read, 900)


def yaml(folder: Path) -> Family:
    from mres.config import load_config

    path = folder / "config.yaml"

    def read(content: bytes) -> str:
        path.write_bytes(content)
        return load_config(path).to_yaml()

    seeds = [load_config(None, [f"parallel.strategy={name}"]).to_yaml().encode() for name in ("single", "fsdp")]
    return Family(seeds, changed_bytes, read, 200)


def index(folder: Path) -> Family:
    from mres.shards.index import load_index, new_index, write_index

    path = folder / "index.npy"
    write_index(path, new_index([3, 4, 5], np.ones((3, 2), np.int32)))

    def read(content: bytes) -> str:
        path.write_bytes(content)
        return str((load_index(path, "here"), load_index(io.BytesIO(content), "here")))

    return Family([path.read_bytes()], changed_bytes, read, 1000)


def manifest(folder: Path) -> Family:
    """With the fingerprint that belongs to what it says: somebody who can write it can compute that, too."""
    from mres.shards.manifest import _fingerprint
    from mres.shards.reader import ShardSet
    from mres.shards.writer import WriteOptions, write_shards

    out = folder / "set"
    write_shards(RecordSource.of([make_record(i) for i in range(3)], {"format": "test"}, "test"), out, WriteOptions(2))
    path = out / "manifest.json"

    def change(content: bytes, random: Random) -> bytes:
        changed = changed_json(content, random)
        try:
            value = json.loads(changed)
            value["sha256"] = _fingerprint(value)
            return json.dumps(value).encode()
        except (ValueError, TypeError, AttributeError):
            return changed

    def read(content: bytes) -> str:
        path.write_bytes(content)
        shards = ShardSet(out)
        return str([shards.read(i).id for i in range(len(shards))])

    return Family([path.read_bytes()], change, read, 700)


def tar(folder: Path) -> Family:
    from mres.shards.index import record_key
    from mres.shards.tar import TarShard

    path = folder / "shard-000000.tar"
    shard = TarShard(path)
    for number in range(2):
        shard.add(number, make_record(number), "jpg")
    shard.close()
    assert record_key(1).encode() in path.read_bytes()

    def read(content: bytes) -> str:
        path.write_bytes(content)
        return str(shard.index([0, 1], np.ones((2, 2), np.int32)))

    return Family([path.read_bytes()], changed_bytes, read, 700)


def state(folder: Path) -> Family:
    from mres.formats.state_file import read_state

    value = {
        "step": 6, "expressions_seen": 3, "bad_steps": 0, "spikes": 0, "rollbacks": 0, "skipped_batches": 0,
        "stream": {"seed": 0, "epoch": 2, "images_consumed": 24, "fingerprint": "2c", "order": "12 of 12"},
        "quarantined": ["a"], "recent": [[1.0, None], [2.0, 3.0]], "frozen": [], "buffers": [], "model": {"kind": "unires"},
        "groups": [{"names": ["a.b"], "weight_decay": 0.01, "lr_scale": 1.0}],
    }  # fmt: skip
    path = folder / "state.json"

    def read(content: bytes) -> str:
        path.write_bytes(content)
        return str(read_state(path))

    return Family([json.dumps(value).encode()], changed_json, read, 1000)


def dcp(folder: Path) -> Family:
    from torch.distributed.checkpoint import save

    from mres.formats.dcp import DcpSource

    tensors = {"model.a": torch.arange(6.0).view(2, 3), "model.b": torch.ones(4, dtype=torch.bfloat16)}
    save(tensors, checkpoint_id=folder, no_dist=True)
    path = folder / ".metadata"

    def read(content: bytes) -> str:
        path.write_bytes(content)
        source = DcpSource(folder, check_sums=True)
        for name, spec in source.specs.items():
            source.read_into(name, memoryview(bytearray(spec.num_bytes)))
        return str(source.specs)

    return Family([path.read_bytes()], changed_bytes, read, 700)


def safetensors(folder: Path) -> Family:
    from safetensors.torch import save

    from mres.formats.safetensors import SafetensorsSource

    tensors = {"a.b": torch.arange(6.0).view(2, 3), "c": torch.ones(4, dtype=torch.bfloat16)}
    path = folder / "model.safetensors"

    def change(content: bytes, random: Random) -> bytes:
        if random.random() < 0.4:
            return changed_bytes(content, random)
        length = int.from_bytes(content[:8], "little")
        header = changed_json(content[8 : 8 + length], random)
        return len(header).to_bytes(8, "little") + header + content[8 + length :]

    def read(content: bytes) -> str:
        path.write_bytes(content)
        source = SafetensorsSource(path)
        for name, spec in source.specs.items():
            source.read_into(name, memoryview(bytearray(spec.num_bytes)))
        return str(source.specs)

    return Family([save(tensors, {"format": "pt"})], change, read, 900)


def pt(folder: Path) -> Family:
    from mres.pretrained.files import open_tensors

    path = folder / "weights.pt"
    seeds = []
    for new in (True, False):
        with io.BytesIO() as buffer:
            tensors = {"state_dict": {"a.b": torch.arange(6.0).view(2, 3), "c": torch.ones(4)}, "epoch": 3}
            torch.save(tensors, buffer, _use_new_zipfile_serialization=new)
            seeds.append(buffer.getvalue())

    def read(content: bytes) -> str:
        path.write_bytes(content)
        return str([(name, value.shape) for name, value in open_tensors(path)])

    return Family(seeds, changed_bytes, read, 700)


FAMILIES = (jpeg, png, rle, polygons, coco, refer, jsonl, yaml, index, manifest, tar, state, dcp, safetensors, pt)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("make", FAMILIES, ids=lambda make: make.__name__)
def test_every_input_is_read_or_refused_by_a_message(make: Callable[[Path], Family], tmp_path: Path) -> None:
    family = make(tmp_path)
    if make is not polygons:
        family.read(family.seeds[0])  # what is changed was good
    inputs = []
    for number in range(family.count):
        random = Random(f"{make.__name__} {number}")
        inputs.append(family.change(random.choice(family.seeds), random))
    found = bounded_each([lambda content=content: family.read(content) for content in inputs])
    kinds = Counter(outcome.kind for outcome in found)
    bad = [f"{number}: {o.kind}: {o.text}" for number, o in enumerate(found) if o.kind not in ("made", "refused")]
    assert not bad, f"{make.__name__}: {dict(kinds)}\n" + "\n".join(bad[:5])
    assert kinds["refused"] > family.count // 20
    long = [o.text[:300] for o in found if o.kind == "refused" and not 0 < len(o.text) < 5000]
    assert not long, long[:3]


def test_there_are_ten_thousand_of_them(tmp_path: Path) -> None:
    assert (
        sum(make(tmp_path / make.__name__).count for make in FAMILIES if not (tmp_path / make.__name__).mkdir())
        >= 10_000
    )
