"""Weights that a user names by whatever holds them, and what is known about them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mres.checkpoint.opening import Kind, open_checkpoint, weights_of
from mres.formats.weights import Weights

__all__ = ["Kind", "OpenedWeights", "Weights", "open_source"]


@dataclass(frozen=True, slots=True)
class OpenedWeights:
    """Weights and what is known about them, which of files that mres did not write is nothing.

    `path` is a checkpoint's folder or a .safetensors file; `state` has the step and the model section.
    """

    path: Path
    weights: Weights
    state: dict[str, Any] | None
    config_yaml: str | None


def open_source(path: Path, kind: Kind = "model") -> OpenedWeights:
    """The weights that a user means by a run's, checkpoint's or exported folder, or by a .safetensors file.

    Of what was exported there is one kind; "model" takes it, whichever it is. What else is read: `open_checkpoint`.

    Raises:
        CheckpointError: nothing there, damaged, or without an average.
    """
    opened = open_checkpoint(path)
    found = weights_of(opened, kind)
    # What was verified keeps its own state, of which the weights' is a part.
    return OpenedWeights(opened.path, Weights(found), opened.source.state, found.config_yaml)
