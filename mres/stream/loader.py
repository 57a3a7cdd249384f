"""The training stream: samples of the order become batches in worker processes; the cursor is a few global numbers.

Shapes: K expressions an image, S side of the square, h side of the grid of logits, T tokens.
"""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from mres.errors import UserError
from mres.io.processes import heed_parent_only
from mres.pixels import text_flip
from mres.records import ImageRecord, RecordError, Rle, expression_id
from mres.rle import decode_counts
from mres.stream import transforms
from mres.stream.batch import Batch, StreamShape, empty_batch, token_ids
from mres.stream.config import DataConfig, local_batch_size
from mres.stream.draws import ExpressionDraws
from mres.stream.image import jitter, square_image
from mres.stream.order import Order, Sample
from mres.stream.rng import rng
from mres.stream.sets import TrainingSets

Tokenize = Callable[[Sequence[str]], tuple[Tensor, int]]

# Images that are tried instead of a broken one; where all are broken, the slot stays empty.
_SUBSTITUTES = 8


@dataclass(frozen=True)
class StreamState:
    """The exact cursor: nothing of it belongs to a rank or a worker.

    `fingerprint` names the data, `order` says how its images are ordered (`Order.description`).
    """

    seed: int
    epoch: int
    images_consumed: int
    fingerprint: str
    order: str

    def to_json(self) -> dict[str, int | str]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str) -> "StreamState":
        """Raises: UserError: naming `where`, for the state of another version, whose order nobody can go on with."""
        expected = [field.name for field in fields(cls)]
        if sorted(value) != sorted(expected):
            raise UserError(
                f"{where}: the state of its stream has {', '.join(sorted(value))}, this mres goes on from one with "
                f"{', '.join(sorted(expected))}: the order of images was another then; start a new run (run.name=…) from "
                "its weights (checkpoint.init_from=…)"
            )
        return cls(**value)


class TrainingStream:
    """Batches of this rank from any step on, the same whatever the number of ranks and workers."""

    def __init__(
        self,
        sets: TrainingSets,
        config: DataConfig,
        shape: StreamShape,
        tokenize: Tokenize,
        *,
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        local_batch_size(config.images_per_batch, world_size)
        self.sets, self.config = sets, config
        self.order = sets.order(config, seed)
        self._dataset = Batches(sets, self.order, config, shape, tokenize)
        self._rank, self._world_size = rank, world_size

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """This rank's share of the global batches of steps first_step … last_step-1.

        Raises:
            UserError: a remote store that does not answer, or refuses.
        """
        samples = self.order.samples(first_step, last_step, rank=self._rank, world_size=self._world_size)
        workers = self.config.workers
        loader: DataLoader[Any] = DataLoader(
            self._dataset,
            batch_sampler=samples,
            collate_fn=_collate,
            num_workers=workers,
            # Whatever the default is: forks share the memory of this process, end with it even when it is killed, and
            # leave no named semaphore behind.
            multiprocessing_context="fork" if workers else None,
            prefetch_factor=self.config.prefetch if workers else None,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_init_worker,
        )
        for batch in loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch

    def state(self, step: int) -> StreamState:
        """The cursor before `step`."""
        order = self.order
        return StreamState(
            order.seed,
            order.epoch_of(step),
            order.images_before(step),
            self.sets.fingerprint,
            order.description(),
        )

    def check_state(self, state: StreamState, step: int) -> None:
        """Refuses to go on where another run stopped: other data, seed or batch size would repeat and skip images."""
        mine = self.state(step)
        for field, name in (
            ("fingerprint", "the data (manifest hash)"),
            ("seed", "run.seed"),
            ("images_consumed", "the images consumed (data.images_per_batch)"),
            ("order", "the order (data.train, data.mix_temperature, data.shuffle, data.shuffle_window)"),
        ):
            ours, theirs = getattr(mine, field), getattr(state, field)
            if ours != theirs:
                raise UserError(
                    f"cannot resume at step {step}: {name} was {theirs} and is now {ours}; give the run the same "
                    "value, or start a new one (run.name=…) from its weights (checkpoint.init_from=…)"
                )


def _collate(batch: Any) -> Any:
    """The dataset makes whole batches, in memory that is handed over as it is: nothing is left to collate."""
    return batch


def _init_worker(_: int) -> None:
    """A worker computes in one thread, and its garbage collector leaves alone what the training process had: shared pages."""
    heed_parent_only()
    torch.set_num_threads(1)
    gc.freeze()


@dataclass(frozen=True, slots=True)
class _Drawn:
    """The ids behind one slot of a batch; no `image_id`: it stayed empty."""

    image_id: str | None = None
    expression_ids: tuple[str, ...] = ()
    num_cut: int = 0
    bad: tuple[str, ...] = ()
    not_mirrored: bool = False


class Batches(Dataset[Batch]):
    """Reads, draws, decodes and augments a rank's samples of a batch; every random choice is keyed by (seed, pass, id)."""

    def __init__(
        self, sets: TrainingSets, order: Order, config: DataConfig, shape: StreamShape, tokenize: Tokenize
    ) -> None:
        self._sets, self._order, self._config, self._shape, self._tokenize = sets, order, config, shape, tokenize
        self._draws = ExpressionDraws(config, [s.manifest.counts.targets_by_category for s in sets])

    def __getitems__(self, samples: Sequence[Sample]) -> Batch | UserError:
        """The batch of these samples; an error that is not one image's comes back as a value, not with a traceback."""
        shared = get_worker_info() is not None
        batch = empty_batch(len(samples), self._config.expressions_per_image, self._shape, shared=shared)
        try:
            self._prefetch(samples)
            drawn = [self._load(batch, slot, sample) for slot, sample in enumerate(samples)]
        except RecordError:
            raise AssertionError("what is wrong with a record is handled where it is read") from None
        except UserError as error:
            return error
        return replace(
            batch,
            image_ids=tuple(d.image_id for d in drawn if d.image_id is not None),
            expression_ids=tuple(e for d in drawn for e in d.expression_ids),
            num_cut=sum(d.num_cut for d in drawn),
            bad=tuple(message for d in drawn for message in d.bad),
            num_not_mirrored=sum(d.not_mirrored for d in drawn),
        )

    def _prefetch(self, samples: Sequence[Sample]) -> None:
        for number, shards in enumerate(self._sets):
            shards.prefetch([s.index for s in samples if s.set == number and s.index is not None])

    def _load(self, batch: Batch, slot: int, sample: Sample) -> _Drawn:
        """Fills a slot with its image, or with a substitute that depends on the sample alone where it is broken."""
        if sample.index is None:
            return _Drawn()
        bad: list[str] = []
        for attempt in range(_SUBSTITUTES + 1):
            candidate = self._order.substitute(sample, attempt) if attempt else sample
            assert candidate.index is not None
            shards = self._sets[candidate.set]
            try:
                record = shards.read(candidate.index)
                return replace(self.fill(batch, slot, record, sample, shards.name(candidate.index)), bad=tuple(bad))
            except RecordError as error:
                bad.append(str(error))
        batch.clear(slot)
        return _Drawn(bad=tuple(bad))

    def fill(self, batch: Batch, slot: int, record: ImageRecord, sample: Sample, where: str) -> _Drawn:
        """Fills a slot with a record; its draws are keyed by its id and the sample's pass.

        Raises:
            RecordError: naming `where` and the record: its image or a mask cannot be decoded.
        """
        key = (self._order.seed, sample.pass_, record.id)
        random = rng(*key, "augment")
        pairs = self._draws.draw(record, rng(*key, "expressions"))
        texts = [target.expressions[i].text for target, i in pairs]
        geometry = transforms.augmented(record, self._shape.side, self._config, random)
        not_mirrored = geometry.flipped and not self._may_flip(texts, record)
        if not_mirrored:
            geometry = replace(geometry, flipped=False)
        if geometry.flipped:
            texts = [text_flip.flip_text(text) for text in texts]
        square_image(record, geometry, batch.image_BCSS[slot], where)
        jitter(batch.image_BCSS[slot], self._config.augment, random)
        self._fill_masks(batch, slot, [target.mask for target, _ in pairs], geometry, f"{where}: record {record.id!r}")
        ids_kT, num_cut = token_ids(self._tokenize, texts, self._shape)
        batch.text_BKT[slot, : len(texts)] = ids_kT
        ids = tuple(expression_id(record, target, i) for target, i in pairs)
        return _Drawn(record.id, ids, num_cut, not_mirrored=not_mirrored)

    def _may_flip(self, texts: Sequence[str], record: ImageRecord) -> bool:
        if self._config.augment.flip_words == "skip" and any(map(text_flip.is_flip_sensitive, texts)):
            return False
        return text_flip.may_flip(texts, (target.expressions[i].text for target, i in record.pairs()))

    def _fill_masks(self, batch: Batch, slot: int, masks: list[Rle], geometry: transforms.Geometry, where: str) -> None:
        try:
            masks_khh = transforms.square_masks(masks, geometry, self._shape.side, self._shape.stride)
            # A target that zoom or shift moved out of the square has nothing to learn from; one that has no pixel in
            # the whole image has: that nothing is meant.
            valid = [
                bool(seen) or _covers_nothing(mask) for seen, mask in zip(masks_khh.any((1, 2)), masks, strict=True)
            ]
        except ValueError as error:
            raise RecordError(f"{where}: a mask cannot be decoded ({error})") from None
        batch.mask_BKhh[slot, : len(masks)] = torch.from_numpy(masks_khh)
        batch.valid_BK[slot, : len(masks)] = torch.tensor(valid)


def _covers_nothing(mask: Rle) -> bool:
    return len(decode_counts(mask.counts)) == 1
