"""mosaicml-streaming in front of mres' own transforms."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from mres.errors import UserError, install
from mres.record_json import record_as_written
from mres.stream.batch import StreamShape, empty_batch
from mres.stream.config import DataConfig
from mres.stream.loader import Batches
from mres.stream.order import Sample


class StreamedSet:
    """A set in MDS, read by `streaming.StreamingDataset` in its own order, without shuffling.

    As its documentation has it: a sample's transforms in `__getitem__`, torch's collation of samples to a batch.
    """

    def __init__(self, folder: Path, ours: Batches, config: DataConfig, shape: StreamShape) -> None:
        self._ours, self._config, self._shape = ours, config, shape
        self._dataset = _dataset_class(self._transformed)(
            local=str(folder), shuffle=False, batch_size=config.images_per_batch
        )

    def batches(self) -> "DataLoader[Any]":
        """One pass."""
        return DataLoader(
            self._dataset,
            batch_size=self._config.images_per_batch,
            num_workers=self._config.workers,
            prefetch_factor=self._config.prefetch,
        )

    def _transformed(self, sample: dict[str, Any]) -> tuple[Tensor, ...]:
        """What mres does with a record."""
        batch = empty_batch(1, self._config.expressions_per_image, self._shape, shared=False)
        record = record_as_written(sample["record"], sample["image"], sample["id"])
        self._ours.fill(batch, 0, record, Sample(0, 0, 0, 0), sample["id"])
        return batch.image_BCSS[0], batch.mask_BKhh[0], batch.text_BKT[0], batch.valid_BK[0]


def _dataset_class(transform: Callable[[dict[str, Any]], tuple[Tensor, ...]]) -> Any:
    try:
        from streaming import StreamingDataset
    except ImportError as error:
        raise UserError(f"the bench compares with mosaicml-streaming ({error}); {install('mds')}") from None

    class Transformed(StreamingDataset):
        def __getitem__(self, at: int) -> tuple[Tensor, ...]:
            return transform(super().__getitem__(at))

    return Transformed
