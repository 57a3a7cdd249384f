"""Weights into a model: a whole one's from a run or a file of mres, a tower's from the files of other libraries.

They are matched with a model by names and shapes, for which it needs no memory, and then read tensor by tensor.
"""

from mres.pretrained.match import Matched
from mres.pretrained.report import Restored
from mres.pretrained.tower import (
    load_image_weights,
    load_text_weights,
    match_image_weights,
    match_text_weights,
)
from mres.pretrained.whole import check_same_model, load_weights, match_weights, run_config

__all__ = [
    "Matched",
    "Restored",
    "check_same_model",
    "load_image_weights",
    "load_text_weights",
    "load_weights",
    "match_image_weights",
    "match_text_weights",
    "match_weights",
    "run_config",
]
