"""mres: referring-expression segmentation at every granularity, trained at any scale.

import mres

model = mres.load("exported/mine")
masks = model.segment("photo.jpg", ["the red car", "the left wheel of the red car"])

records = [mres.record("photo.jpg", {"the red car": mask})]
mres.write_shards(records, "data/mine")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mres.evaluate.segmenter import load as load
    from mres.shards.own_records import record as record
    from mres.shards.own_records import write_shards as write_shards

__version__ = "0.1.0"

_PUBLIC = {
    "load": "mres.evaluate.segmenter",
    "record": "mres.shards.own_records",
    "write_shards": "mres.shards.own_records",
}


def __getattr__(name: str) -> Any:
    """What is public, imported when it is asked for: nothing that answers before training may have to wait for torch."""
    if name in _PUBLIC:
        from importlib import import_module

        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'mres' has no attribute {name!r}")
