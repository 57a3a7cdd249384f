"""How a shard set is written, as `tools/shard.py build` is asked."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from mres.errors import UserError, shown
from mres.pixels.upright import FRAMES, UPRIGHT, Frame

Layout = Literal["tar", "mds"]
_TYPES: dict[str, tuple[type, ...]] = {
    "images_per_shard": (int,),
    "max_bad_fraction": (int, float),
    "max_empty_fraction": (int, float),
    "overwrite": (bool,),
    "workers": (int,),
    "max_side": (int, type(None)),
    "quality": (int,),
}
_CHOICES = {"layout": get_args(Layout), "orientation": FRAMES}


@dataclass(frozen=True)
class WriteOptions:
    """How a set is written.

    `max_bad_fraction` is the share of the records that may be broken: those are listed in `quarantine.jsonl` and left
    out. At 0 one stops the build, with the messages of the first that were found. `max_empty_fraction` is the share of the
    masks that may have no pixel without being marked as `no_target`. `max_side` (pixels) re-encodes larger images as JPEG
    of `quality`; None keeps every byte of those that are upright and of 8 bits. `orientation`: what masks were drawn on
    (`RecordSource.frame`). `workers` are further processes, 0 works in this one.
    """

    images_per_shard: int = 1000
    max_bad_fraction: float = 0.0
    max_empty_fraction: float = 0.5
    overwrite: bool = False
    workers: int = 0
    max_side: int | None = None
    quality: int = 92
    layout: Layout = "tar"
    orientation: Frame = "auto"

    def __post_init__(self) -> None:
        for name, types in _TYPES.items():
            value = getattr(self, name)
            if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
                kinds = " or ".join("None" if kind is type(None) else kind.__name__ for kind in types)
                raise UserError(f"{name.replace('_', ' ')}: {shown(value)}; expected {kinds}")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"{name}: {shown(getattr(self, name))}; allowed: {', '.join(allowed)}")
        if not 1 <= self.images_per_shard <= 10_000_000:
            raise UserError(f"images per shard: {self.images_per_shard}; allowed: 1 to 10000000")
        if not 0 <= self.max_bad_fraction < 1:
            raise UserError(f"max bad fraction: {self.max_bad_fraction}; allowed: 0 to below 1")
        if not 0 <= self.max_empty_fraction <= 1:
            raise UserError(f"max empty fraction: {self.max_empty_fraction}; allowed: 0 to 1")
        if not 0 <= self.workers <= 1024:
            raise UserError(f"workers: {self.workers}; allowed: 0 to 1024")
        if self.max_side is not None and not 16 <= self.max_side <= 20_000:
            raise UserError(f"max side: {self.max_side}; allowed: 16 to 20000 pixels")
        if not 1 <= self.quality <= 100:
            raise UserError(f"quality: {self.quality}; allowed: 1 to 100")

    def of_manifest(self) -> dict[str, Any]:
        """What decides the set's bytes."""
        no_bytes = {"overwrite", "workers", "max_empty_fraction"} | ({"quality"} if self.max_side is None else set())
        return {**{key: value for key, value in asdict(self).items() if key not in no_bytes}, **UPRIGHT}
