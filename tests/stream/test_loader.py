"""The same batches whatever the number of workers and ranks; broken and short records."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_data import make_record
from torch import Tensor

from mres.errors import UserError
from mres.records import Expression, RecordError, Target, encode_mask
from mres.shards.reader import ShardSet
from mres.shards.writer import WriteOptions, write_shards
from mres.sources.source import RecordSource
from mres.stream.batch import Batch, StreamShape, empty_batch
from mres.stream.config import AugmentConfig, DataConfig
from mres.stream.loader import StreamState, TrainingStream
from mres.stream.sets import TrainingSets

SHAPE = StreamShape(side=32, stride=2, text_length=6)
NUM_IMAGES = 22
AUGMENT = AugmentConfig(zoom=(0.7, 1.4), shift=0.2, brightness=0.3, contrast=0.3)


def tokenize(texts: Sequence[str]) -> tuple[Tensor, int]:
    """The first letters; texts are cut at 60."""
    ids_KT = torch.zeros(len(texts), SHAPE.text_length, dtype=torch.int32)
    for row, text in enumerate(texts):
        letters = [ord(letter) for letter in text[-SHAPE.text_length :]]
        ids_KT[row, : len(letters)] = torch.tensor(letters)
    return ids_KT, sum(len(text) > 60 for text in texts)


def stream(
    shards: ShardSet | TrainingSets, *, rank: int = 0, world_size: int = 1, seed: int = 0, weights=None, **options
) -> TrainingStream:
    values = {"images_per_batch": 4, "expressions_per_image": 3, "workers": 0, "augment": AUGMENT, **options}
    sets = shards if isinstance(shards, TrainingSets) else TrainingSets([shards])
    train = [{"path": s.location, "weight": w} for s, w in zip(sets, weights or [1] * len(sets), strict=True)]
    config = DataConfig(train=train if len(train) > 1 else train[0]["path"], **values)
    return TrainingStream(sets, config, SHAPE, tokenize, seed=seed, rank=rank, world_size=world_size)


@pytest.fixture(scope="module")
def shards(tiny_shards: Path) -> ShardSet:
    return ShardSet(tiny_shards)


@pytest.fixture(scope="module")
def whole(shards: ShardSet) -> list[Batch]:
    """The first 13 steps (two epochs and one) on one rank without workers."""
    return list(stream(shards).batches(0, 13))


def assert_same(one: Batch, other: Batch) -> None:
    for name in ("image_BCSS", "mask_BKhh", "text_BKT", "valid_BK"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    for name in ("image_ids", "expression_ids", "num_cut", "bad"):
        assert getattr(one, name) == getattr(other, name), name


def joined(parts: Sequence[Batch]) -> Batch:
    tensors = [torch.cat([getattr(p, n) for p in parts]) for n in ("image_BCSS", "mask_BKhh", "text_BKT", "valid_BK")]
    ids = [tuple(i for p in parts for i in getattr(p, name)) for name in ("image_ids", "expression_ids")]
    return Batch(*tensors, *ids, sum(p.num_cut for p in parts), tuple(b for p in parts for b in p.bad))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_a_bit(shards: ShardSet, whole: list[Batch], workers: int) -> None:
    for one, other in zip(whole, stream(shards, workers=workers).batches(0, 13), strict=True):
        assert_same(one, other)


@pytest.mark.parametrize(("world_size", "workers"), [(2, 0), (4, 0), (2, 1)])
def test_ranks_do_not_change_a_bit(shards: ShardSet, whole: list[Batch], world_size: int, workers: int) -> None:
    ranks = [
        stream(shards, rank=rank, world_size=world_size, workers=workers).batches(0, 13) for rank in range(world_size)
    ]
    for one, parts in zip(whole, zip(*ranks, strict=True), strict=True):
        assert {part.image_BCSS.shape[0] for part in parts} == {4 // world_size}
        assert_same(one, joined(parts))


@pytest.mark.parametrize("step", [1, 5, 6, 9])
def test_going_on_at_a_step_gives_the_batches_from_there(shards: ShardSet, whole: list[Batch], step: int) -> None:
    going_on = stream(shards)
    state = stream(shards).state(step)
    assert state.images_consumed == sum(batch.num_images for batch in whole[:step])
    going_on.check_state(state, step)
    for one, other in zip(whole[step:], going_on.batches(step, 13), strict=True):
        assert_same(one, other)


def test_an_epoch_has_every_image_once_and_every_expression_at_most_once(whole: list[Batch]) -> None:
    for first in (0, 6):
        epoch = joined(whole[first : first + 6])
        assert sorted(epoch.image_ids) == sorted(f"im{i}" for i in range(NUM_IMAGES))
        assert len(set(epoch.expression_ids)) == len(epoch.expression_ids) == 3 * NUM_IMAGES
        assert {i.split("/")[0] for i in epoch.expression_ids} == set(epoch.image_ids)
    last = whole[5]
    assert last.num_images == 2
    assert last.image_BCSS.shape[0] == 4
    assert not last.valid_BK[2:].any()
    assert whole[0].image_ids != whole[6].image_ids


def test_masks_and_texts_belong_together(shards: ShardSet) -> None:
    """Without augmentation the mask of "the red box" lies where the image is red."""
    red = np.array([220, 40, 40])
    checked = 0
    for batch in stream(shards, augment=AugmentConfig(flip=0), expressions_per_image=6).batches(0, 6):
        ids = iter(batch.expression_ids)
        for row in range(batch.num_images):
            record = make_record(int(batch.image_ids[row].removeprefix("im")))
            colours = {t.id: e.text for t in record.targets for e in t.expressions if e.kind == "colour"}
            for k in range(record.num_expressions):
                target = next(ids).split("/")[1]
                if colours.get(target) == "the red box":
                    inside = np.asarray(batch.mask_BKhh[row, k].repeat_interleave(2, 0).repeat_interleave(2, 1)) == 255
                    assert np.abs(np.asarray(batch.image_BCSS[row]).transpose(1, 2, 0)[inside] - red).mean() < 30
                    checked += 1
    assert checked > 5


def test_seeds_give_other_batches(shards: ShardSet, whole: list[Batch]) -> None:
    other = next(stream(shards, seed=1).batches(0, 1))
    assert other.image_ids != whole[0].image_ids


def test_micro_batches_are_the_batch(whole: list[Batch]) -> None:
    for parts in (1, 2, 4):
        pieces = whole[0].split(parts)
        assert len(pieces) == parts
        assert torch.equal(torch.cat([p.image_BCSS for p in pieces]), whole[0].image_BCSS)
        assert torch.equal(torch.cat([p.valid_BK for p in pieces]), whole[0].valid_BK)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, "run.seed was 0 and is now 1"),
        ({"images_per_batch": 2}, r"the images consumed \(data.images_per_batch\) was 20 and is now 10"),
    ],
)
def test_another_stream_cannot_go_on(shards: ShardSet, changes: dict, words: str) -> None:
    with pytest.raises(
        UserError, match=f"cannot resume at step 5: {words}; give the run the same value, or start a new"
    ):
        stream(shards, **changes).check_state(stream(shards).state(5), 5)


def test_a_state_of_another_version_is_refused(shards: ShardSet) -> None:
    state = stream(shards).state(5)
    assert StreamState.from_json(state.to_json(), "here") == state
    old = {key: value for key, value in state.to_json().items() if key != "order"}
    with pytest.raises(UserError, match=r"runs/x: the state of its stream has .*; start a new run"):
        StreamState.from_json(old, "runs/x")


def test_other_data_cannot_go_on(shards: ShardSet, tmp_path: Path) -> None:
    records = [make_record(i) for i in range(NUM_IMAGES - 1)]
    write_shards(RecordSource.of(records, {"format": "tiny"}), tmp_path / "set")
    with pytest.raises(UserError, match=r"the data \(manifest hash\) was "):
        stream(ShardSet(tmp_path / "set")).check_state(stream(shards).state(5), 5)


def test_a_batch_that_cannot_be_split_is_refused(shards: ShardSet) -> None:
    with pytest.raises(UserError, match="cannot be split among 3 ranks"):
        stream(shards, world_size=3)


def test_records_with_fewer_expressions_than_k(shards: ShardSet) -> None:
    assert TrainingSets([shards]).shortage(4) is None
    few = stream(shards, expressions_per_image=6)
    text = few.sets.shortage(6)
    assert text is not None
    assert text.startswith("data.expressions_per_image=6 is more than 16 of 22 records have (fewest: 4, ")
    assert text.endswith("their free places stay empty and weigh nothing")
    batch = next(few.batches(0, 1))
    counts = [make_record(int(i.removeprefix("im"))).num_expressions for i in batch.image_ids]
    assert [int(n) for n in batch.mask_BKhh.flatten(2).any(-1).sum(1)] <= counts
    assert len(batch.expression_ids) == sum(counts)
    assert not batch.valid_BK[torch.tensor(counts) < 6, 5].any()
    with pytest.raises(UserError, match=r"at most 6 can be drawn from .*; set data\.expressions_per_image=6 or less"):
        few.sets.shortage(7)


def test_what_zoom_moves_out_of_the_square_weighs_nothing(shards: ShardSet) -> None:
    away = AugmentConfig(zoom=(4.0, 4.0), shift=0.5)
    batches = list(stream(shards, augment=away).batches(0, 6))
    empty = torch.cat([~b.mask_BKhh.flatten(2).any(-1) for b in batches])
    valid = torch.cat([b.valid_BK for b in batches])
    assert (valid == ~empty).all()
    assert 0 < valid.sum() < 3 * NUM_IMAGES
    assert sum(len(b.expression_ids) for b in batches) == 3 * NUM_IMAGES, "the trace still names them"


def test_skipping_flips_where_a_side_is_named(shards: ShardSet) -> None:
    """Either the words are swapped in a mirrored image, or the image is not mirrored; never a lie."""
    options = {"expressions_per_image": 6, "workers": 0}
    swap, skip, plain = (
        list(stream(shards, augment=AugmentConfig(flip=flip, flip_words=words), **options).batches(0, 6))
        for flip, words in ((1.0, "swap"), (1.0, "skip"), (0.0, "swap"))
    )
    named = 0
    for one, other, none in zip(swap, skip, plain, strict=True):
        assert one.expression_ids == other.expression_ids == none.expression_ids
        for row, image_id in enumerate(none.image_ids):
            record = make_record(int(image_id.removeprefix("im")))
            has_side = any(e.kind == "position" for t in record.targets for e in t.expressions)
            named += has_side
            assert torch.equal(one.mask_BKhh[row], none.mask_BKhh[row].flip(-1))
            assert torch.equal(other.mask_BKhh[row], (none if has_side else one).mask_BKhh[row])
            assert torch.equal(other.text_BKT[row], none.text_BKT[row])
            assert torch.equal(one.text_BKT[row], none.text_BKT[row]) == (not has_side)
    assert 0 < named < NUM_IMAGES


def test_words_that_cannot_be_judged_keep_their_image(shards: ShardSet) -> None:
    """im3 says something in Chinese: it alone stays; the draws of all are what they were, and it is counted."""

    class Foreign(ShardSet):
        def read(self, index: int):
            record = super().read(index)
            if index != 3:
                return record
            target = replace(
                record.targets[0], expressions=(Expression("左边的盒子"), *record.targets[0].expressions[1:])
            )
            return replace(record, targets=(target, *record.targets[1:]))

    options = {"expressions_per_image": 6, "workers": 0}
    mirrored = list(stream(shards, augment=AugmentConfig(flip=1.0), **options).batches(0, 6))
    mixed = list(stream(Foreign(shards.location), augment=AugmentConfig(flip=1.0), **options).batches(0, 6))
    still = list(stream(shards, augment=AugmentConfig(flip=0.0), **options).batches(0, 6))
    assert sum(batch.num_not_mirrored for batch in mirrored + still) == 0
    assert sum(batch.num_not_mirrored for batch in mixed) == 1
    for one, other, none in zip(mirrored, mixed, still, strict=True):
        assert one.image_ids == other.image_ids
        for row, image_id in enumerate(one.image_ids):
            expected = none if image_id == "im3" else one
            assert torch.equal(other.image_BCSS[row], expected.image_BCSS[row])
            assert torch.equal(other.mask_BKhh[row], expected.mask_BKhh[row])


class _Broken(ShardSet):
    """A set of which two records cannot be read."""

    def read(self, index: int):
        if index == 3:
            raise RecordError(f"{self.name(index)}: damaged")
        record = super().read(index)
        if index != 4:
            return record
        return type(record)(**{f: getattr(record, f) for f in record.__slots__} | {"image": record.image[:200]})


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (2, 0), (1, 1)])
def test_broken_records_are_named_and_replaced_the_same_everywhere(
    tiny_shards: Path, whole: list[Batch], world_size: int, workers: int
) -> None:
    shards = _Broken(tiny_shards)
    ranks = [
        stream(shards, rank=rank, world_size=world_size, workers=workers).batches(0, 6) for rank in range(world_size)
    ]
    broken = [joined(parts) for parts in zip(*ranks, strict=True)]
    bad = [message for batch in broken for message in batch.bad]
    assert len(set(bad)) == 2
    assert any("shard-000000.tar: 00000003: damaged" in message for message in bad)
    assert any("00000004: record 'im4': the image cannot be decoded" in message for message in bad)
    order = stream(shards).order
    for one, other, slots in zip(whole[:6], broken, order.samples(0, 6, rank=0, world_size=1), strict=True):
        assert other.num_images == one.num_images, "every place is filled"
        for row, slot in enumerate(slots[: one.num_images]):
            expected = slot
            for attempt in range(1, 9):
                if expected.index in (3, 4):
                    expected = order.substitute(slot, attempt)
            assert other.image_ids[row] == f"im{expected.index}"
            if expected == slot:
                assert torch.equal(one.image_BCSS[row], other.image_BCSS[row]), "the others are what they were"
                assert torch.equal(one.mask_BKhh[row], other.mask_BKhh[row])


def test_where_all_is_broken_places_stay_empty(tiny_shards: Path) -> None:
    class Nothing(ShardSet):
        def read(self, index: int):
            raise RecordError(f"{index} is damaged")

    batch = next(stream(Nothing(tiny_shards)).batches(0, 1))
    assert batch.num_images == 0
    assert not batch.valid_BK.any()
    assert not batch.image_BCSS.any()
    assert len(batch.bad) >= 4


@pytest.mark.parametrize("workers", [0, 1])
def test_a_store_that_fails_ends_the_stream_with_its_message_alone(tiny_shards: Path, workers: int) -> None:
    class Refused(ShardSet):
        def read(self, index: int):
            raise UserError("s3://bucket/set: 403, check the credentials")

    with pytest.raises(UserError) as caught:
        next(stream(Refused(tiny_shards), workers=workers).batches(0, 1))
    assert str(caught.value) == "s3://bucket/set: 403, check the credentials"


def test_a_bad_mask_is_a_broken_record(tiny_shards: Path) -> None:
    class BadMask(ShardSet):
        def read(self, index: int):
            record = super().read(index)
            if index != 3:
                return record
            bad = replace(record.targets[0], mask=replace(record.targets[0].mask, counts=b"01"))
            return replace(record, targets=(bad, *record.targets[1:]))

    bad = [
        message
        for batch in stream(BadMask(tiny_shards), expressions_per_image=6).batches(0, 6)
        for message in batch.bad
    ]
    assert len(bad) == 1
    assert "00000003: record 'im3': a mask cannot be decoded" in bad[0]


def test_an_expression_that_means_nothing_is_learned(tmp_path: Path) -> None:
    """Its mask is empty in the whole image: other than one that zoom moved out, it weighs like any other."""
    records = [make_record(i) for i in range(4)]
    none = Target(
        "none", "object", "no-target", encode_mask(np.zeros((37, 91), np.uint8)), (0, 0, 0, 0), (Expression("a cow"),)
    )
    height, width = records[3].height, records[3].width
    none = replace(none, mask=encode_mask(np.zeros((height, width), np.uint8)))
    records[3] = replace(records[3], targets=(*records[3].targets, none))
    write_shards(RecordSource.of(records, {"format": "tiny"}), tmp_path / "set")
    (batch,) = stream(ShardSet(tmp_path / "set"), expressions_per_image=7).batches(0, 1)
    row = batch.image_ids.index("im3")
    named = [i for i in batch.expression_ids if i.startswith("im3/")]
    place = named.index("im3/none/0")
    assert batch.valid_BK[row, place]
    assert not batch.mask_BKhh[row, place].any()
    assert int(batch.valid_BK[row].sum()) == len(named)


@pytest.fixture
def two_sets(tiny_shards: Path, tmp_path: Path) -> TrainingSets:
    """22 and 9 images; the second set's are called other0 …"""
    records = [replace(make_record(i), id=f"other{i}") for i in range(9)]
    write_shards(RecordSource.of(records, {"format": "tiny"}), tmp_path / "second", WriteOptions(4))
    return TrainingSets([ShardSet(tiny_shards), ShardSet(tmp_path / "second")])


def test_sets_are_mixed_by_weight_the_same_on_any_world(two_sets: TrainingSets) -> None:
    options = {"weights": [1, 3], "images_per_batch": 4}
    whole = list(stream(two_sets, **options).batches(0, 16))
    seen = Counter(i for batch in whole[:8] for i in batch.image_ids)
    others = sum(number for name, number in seen.items() if name.startswith("other"))
    assert seen.total() == 31
    assert others == round(31 * 27 / 49)
    assert max(number for name, number in seen.items() if not name.startswith("other")) == 1
    ranks = [list(stream(two_sets, rank=r, world_size=2, **options).batches(5, 16)) for r in range(2)]
    for one, parts in zip(whole[5:], zip(*ranks, strict=True), strict=True):
        assert_same(one, joined(parts))
    twice = [name for name, number in seen.items() if number > 1]
    images = {name: [] for name in twice}
    for batch in whole[:8]:
        for row, name in enumerate(batch.image_ids):
            if name in images:
                images[name].append(batch.image_BCSS[row])
    assert twice
    assert all(not torch.equal(a, b) for a, b, *_ in images.values()), "each time augmented in another way"


def test_another_mixture_cannot_go_on(two_sets: TrainingSets) -> None:
    one, other = stream(two_sets, weights=[1, 3]), stream(two_sets, weights=[1, 2])
    with pytest.raises(UserError, match=r"cannot resume at step 3: the order \(data.train, .* was .* and is now "):
        other.check_state(one.state(3), 3)
    with pytest.raises(UserError, match=r"the order .*windows of 1024 and is now .*windows of 7"):
        stream(two_sets, weights=[1, 3], shuffle_window=7).check_state(one.state(3), 3)


def test_batches_of_workers_lie_in_shared_memory_without_a_name(shards: ShardSet) -> None:
    before = set(os.listdir("/dev/shm"))
    batches = stream(shards, workers=1).batches(0, 4)
    batch = next(batches)
    assert batch.image_BCSS.is_shared()
    assert set(os.listdir("/dev/shm")) <= before
    plain = empty_batch(2, 3, SHAPE, shared=False)
    shared = empty_batch(2, 3, SHAPE, shared=True)
    assert not plain.image_BCSS.is_shared()
    for name in ("image_BCSS", "mask_BKhh", "text_BKT", "valid_BK"):
        one, other = getattr(plain, name), getattr(shared, name)
        assert (one.shape, one.dtype, one.is_contiguous()) == (other.shape, other.dtype, other.is_contiguous())
        assert torch.equal(one, other)


def test_cut_expressions_are_counted(shards: ShardSet) -> None:
    long = stream(shards)
    long._dataset._tokenize = lambda texts: (tokenize(texts)[0], len(texts))
    assert next(long.batches(0, 1)).num_cut == 12
