"""What the server imports from which tests fork their processes: importing it takes longer than most tests do."""

import multiprocessing
import os
from pathlib import Path

PRELOAD = [
    "open_clip.tokenizer",
    "open_clip.transformer",
    "pycocotools.mask",
    "timm.models.vision_transformer",
    "torch._dynamo",
    "torch.distributed.checkpoint._fsspec_filesystem",
    "torch.distributed.fsdp",
    "torch.utils.tensorboard",
    "mres.evaluate.evaluator",
    "mres.evaluate.run",
    "mres.train.session",
]
# On a machine with GPUs DeepSpeed would look at them when imported, and no process can use them that was forked after it.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    PRELOAD += ["deepspeed", "deepspeed.ops", "deepspeed.runtime.zero.muon.muon_optimizer"]


def preload() -> None:
    """Before anything starts the server; there is one for all tests.

    These are modules that any interpreter finds: before Python 3.12.8 the server has no other path, and is silent about
    what it cannot import.
    """
    multiprocessing.set_forkserver_preload(PRELOAD)
