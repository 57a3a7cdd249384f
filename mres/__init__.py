"""mres: referring-expression segmentation at every granularity, trained at any scale.

import mres

model = mres.load("exported/mine")
masks = model.segment("photo.jpg", ["the red car", "the left wheel of the red car"])
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mres.evaluate.segmenter import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`mres.load`, which brings torch along: nothing that answers before training may have to wait for that."""
    if name == "load":
        from mres.evaluate.segmenter import load

        return load
    raise AttributeError(f"module 'mres' has no attribute {name!r}")
