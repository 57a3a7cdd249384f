"""What a run has counted so far, the same on every rank; it travels in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Progress:
    """Counts of a run.

    Attributes:
        skipped_batches: how many global batches of the stream were passed over by going back.
        recent: what spikes are measured against (`SpikeDetector.to_json`).
    """

    expressions_seen: int = 0
    bad_steps: int = 0
    spikes: int = 0
    rollbacks: int = 0
    skipped_batches: int = 0
    quarantined: set[str] = field(default_factory=set)
    recent: list[list[float | None]] | None = None

    def batch_index(self, step: int) -> int:
        """Which of the stream's global batches step `step` (from 0) takes."""
        return step + self.skipped_batches

    def moved(self, steps: int) -> bool:
        """Whether one of `steps` steps was made; it is taken to be so after going back, which counts steps twice."""
        return self.rollbacks > 0 or self.bad_steps + self.spikes < steps

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "quarantined": sorted(self.quarantined)}

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Progress:
        counts = ("bad_steps", "spikes", "rollbacks", "skipped_batches")
        return cls(
            int(state.get("expressions_seen", 0)),
            **{name: int(state.get(name, 0)) for name in counts},
            quarantined=set(state.get("quarantined", ())),
            recent=state.get("recent"),
        )

    def gone_back(self, state: Mapping[str, Any], step: int, reached: int) -> Progress:
        """After going back from `reached` steps to a checkpoint of `step` steps, whose `state` was this run's then.

        What was skipped and how often stays counted; training goes on with the batches after those that were seen.
        """
        back = Progress.from_json(state)
        back.bad_steps, back.spikes = self.bad_steps, self.spikes
        back.rollbacks = self.rollbacks + 1
        back.skipped_batches = self.skipped_batches + reached - step
        return back
