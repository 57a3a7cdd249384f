"""DeepSpeed's own checkpoint folders of ZeRO, as `engine.save_checkpoint` writes them and `load_checkpoint` takes them."""

from mres.formats.deepspeed_read import DeepSpeedSource, is_deepspeed, open_deepspeed
from mres.formats.deepspeed_write import write_deepspeed

__all__ = ["DeepSpeedSource", "is_deepspeed", "open_deepspeed", "write_deepspeed"]
