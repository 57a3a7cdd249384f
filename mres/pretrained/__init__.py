"""Weights into a model: a whole one's from a run or a file of mres, a tower's from the files of other libraries.

They are matched with a model by names and shapes, for which it needs no memory, and then read tensor by tensor.
"""

from mres.pretrained.match import Matched, copy_into
from mres.pretrained.report import Restored
from mres.pretrained.tower import match_tower
from mres.pretrained.whole import check_same_model, load_weights, match_weights, run_config

__all__ = [
    "Matched",
    "Restored",
    "check_same_model",
    "copy_into",
    "load_weights",
    "match_tower",
    "match_weights",
    "run_config",
]
