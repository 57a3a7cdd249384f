"""What looks at a run while it trains, beside its metrics; a trainer without any has the defaults, which do nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from mres.supervise.heartbeat import Heartbeat, NoHeartbeat
from mres.train.profile import Windows


@dataclass
class Instruments:
    """`utilisation` tells the share of the devices' peak from images a second, where the peak is known."""

    heartbeat: Heartbeat = field(default_factory=NoHeartbeat)
    windows: Windows | None = None
    utilisation: Callable[[float], float] | None = None

    def at(self, phase: str, step: int) -> None:
        """The training thread enters a phase (`heartbeat.PHASES`) of a step, which counts from 1."""
        self.heartbeat.at(phase, step)

    def before(self, step: int) -> float:
        """Opens the windows that begin with a step; the seconds that this took."""
        return self._timed("before", step)

    def after(self, step: int) -> float:
        """Closes the windows that end with a step; the seconds that this took."""
        return self._timed("after", step)

    def _timed(self, when: str, step: int) -> float:
        started = time.perf_counter()
        if self.windows is not None:
            getattr(self.windows, when)(step)
        return time.perf_counter() - started

    def close(self) -> None:
        if self.windows is not None:
            self.windows.close()

    def mfu(self, images_per_s: float) -> dict[str, float]:
        """The metric, or nothing where the peak is not known."""
        return {} if self.utilisation is None else {"mfu": self.utilisation(images_per_s)}
