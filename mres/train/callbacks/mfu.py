"""Utilisation: the share of the devices' peak that training gets, as the metric `mfu`; on rank 0."""

from collections.abc import Callable

from mres.train.callback import Callback


class Mfu(Callback):
    """`utilisation` gives a function from images a second to that share (`mres/flops.py`), or None: nobody knows the peak."""

    def __init__(self, utilisation: Callable[[], Callable[[float], float] | None]) -> None:
        self._make = utilisation
        self._share: Callable[[float], float] | None = None

    def run_start(self, first_step: int) -> None:
        self._share = self._share or self._make()

    def on_log(self, metrics: dict[str, float | int]) -> None:
        if self._share is not None:
            metrics["mfu"] = self._share(metrics["images_per_s"])
