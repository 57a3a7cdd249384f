"""The training stream: slots of the order become batches in worker processes; the cursor is three global numbers.

Shapes: K expressions an image, S side of the square, h side of the grid of logits, T tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mres.errors import UserError
from mres.records import ImageRecord, RecordError, expression_id
from mres.shards.reader import ShardSet
from mres.stream import sides, transforms
from mres.stream.batch import Batch, Sample, collate
from mres.stream.config import DataConfig, share_of_rank
from mres.stream.draws import draw_expressions
from mres.stream.image import jitter, square_image
from mres.stream.order import Order, Slot, rng

Tokenize = Callable[[Sequence[str]], tuple[Tensor, int]]


@dataclass(frozen=True, slots=True)
class StreamShape:
    """What the model wants: `side` of the square, `stride` of its logits, `text_length` in tokens."""

    side: int
    stride: int
    text_length: int


@dataclass(frozen=True)
class StreamState:
    """The exact cursor: nothing of it belongs to a rank or a worker."""

    seed: int
    epoch: int
    images_consumed: int
    fingerprint: str

    def to_json(self) -> dict[str, int | str]:
        return asdict(self)


class TrainingStream:
    """Batches of this rank from any step on, the same whatever the number of ranks and workers."""

    def __init__(
        self,
        shards: ShardSet,
        config: DataConfig,
        shape: StreamShape,
        tokenize: Tokenize,
        *,
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        share_of_rank(config.images_per_batch, world_size)
        self.shards, self.config = shards, config
        self.order = Order(seed, len(shards), config.images_per_batch)
        self._dataset = _Images(shards, config, shape, tokenize, seed)
        self._rank, self._world_size = rank, world_size

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """This rank's share of the global batches of steps first_step … last_step-1."""
        slots = self.order.slots(first_step, last_step, rank=self._rank, world_size=self._world_size)
        workers = self.config.workers
        return iter(
            DataLoader(
                self._dataset,
                batch_sampler=slots,
                collate_fn=collate,
                num_workers=workers,
                prefetch_factor=self.config.prefetch if workers else None,
                pin_memory=torch.cuda.is_available(),
                worker_init_fn=_one_thread,
            )
        )

    def state(self, step: int) -> StreamState:
        """The cursor before `step`."""
        order = self.order
        return StreamState(order.seed, order.epoch_of(step), order.images_before(step), self.shards.fingerprint)

    def check_state(self, state: StreamState, step: int) -> None:
        """Refuses to go on where another run stopped: other data, seed or batch size would repeat and skip images."""
        for name, mine, theirs in (
            ("the data (manifest hash)", self.shards.fingerprint, state.fingerprint),
            ("run.seed", self.order.seed, state.seed),
            ("the images consumed (data.images_per_batch)", self.order.images_before(step), state.images_consumed),
        ):
            if mine != theirs:
                raise UserError(
                    f"cannot resume at step {step}: {name} was {theirs} and is now {mine}; give the run the same "
                    "value, or start a new one (run.name=…) from its weights (checkpoint.init_from=…)"
                )

    def shortage(self) -> str | None:
        """A warning where records have fewer expressions than K; their free places are left empty and weigh nothing."""
        k, counts_N = self.config.expressions_per_image, self.shards.num_expressions_N
        short = np.flatnonzero(counts_N < k)
        if not len(short):
            return None
        fewest = int(short[counts_N[short].argmin()])
        message = (
            f"data.expressions_per_image={k} is more than {len(short)} of {len(counts_N)} records have (fewest: "
            f"{counts_N[fewest]}, {self.shards.name(fewest)}); "
        )
        if len(short) == len(counts_N):
            raise UserError(message + f"at most {counts_N.max()} can be drawn from {self.shards.folder}")
        return message + "their free places stay empty and weigh nothing"


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


class _Images(Dataset[Sample]):
    """Reads, draws, decodes and augments one slot; every random choice is keyed by (seed, epoch, image id)."""

    def __init__(self, shards: ShardSet, config: DataConfig, shape: StreamShape, tokenize: Tokenize, seed: int) -> None:
        self.shards, self.config, self.shape, self.tokenize, self.seed = shards, config, shape, tokenize, seed

    def __getitem__(self, slot: Slot) -> Sample:
        if slot.index is None:
            return self._empty()
        try:
            record = self.shards.read(slot.index)
            return self._sample(record, slot.epoch, self.shards.name(slot.index))
        except RecordError as error:
            return self._empty(bad=str(error))

    def _sample(self, record: ImageRecord, epoch: int, where: str) -> Sample:
        random = rng(self.seed, epoch, record.id, "augment")
        pairs = draw_expressions(record, self.config, rng(self.seed, epoch, record.id, "expressions"))
        texts = [target.expressions[i].text for target, i in pairs]
        geometry = transforms.augmented(record, self.shape.side, self.config, random)
        if geometry.flipped and self.config.augment.flip_words == "skip" and any(map(sides.has_side_word, texts)):
            geometry = transforms.Geometry(geometry.width, geometry.height, geometry.box, geometry.rect)
        if geometry.flipped:
            texts = [sides.swap_side_words(text) for text in texts]
        sample = self._empty()
        square_image(record, geometry, sample.image_CSS, where)
        jitter(sample.image_CSS, self.config.augment, random)
        masks, shape = [target.mask for target, _ in pairs], self.shape
        try:
            masks_khh = transforms.square_masks(masks, geometry, shape.side, shape.stride)
        except ValueError as error:
            raise RecordError(f"{where}: record {record.id!r}: a mask cannot be decoded ({error})") from None
        return self._fill(sample, record, pairs, texts, masks_khh)

    def _fill(self, empty: Sample, record: ImageRecord, pairs: list, texts: list[str], masks_khh: np.ndarray) -> Sample:
        ids_kT, num_cut = self.tokenize(texts)
        k = len(pairs)
        empty.mask_Khh[:k] = torch.from_numpy(masks_khh)
        empty.text_KT[:k] = ids_kT
        # A target that zoom or shift moved out of the square has nothing to learn from.
        empty.valid_K[:k] = torch.from_numpy(masks_khh.any(axis=(1, 2)))
        return Sample(
            empty.image_CSS,
            empty.mask_Khh,
            empty.text_KT,
            empty.valid_K,
            image_id=record.id,
            expression_ids=tuple(expression_id(record, target, i) for target, i in pairs),
            num_cut=num_cut,
        )

    def _empty(self, bad: str | None = None) -> Sample:
        side, grid, k = self.shape.side, self.shape.side // self.shape.stride, self.config.expressions_per_image
        return Sample(
            torch.zeros(3, side, side, dtype=torch.uint8),
            torch.zeros(k, grid, grid, dtype=torch.uint8),
            torch.zeros(k, self.shape.text_length, dtype=torch.int32),
            torch.zeros(k, dtype=torch.bool),
            bad=bad,
        )
