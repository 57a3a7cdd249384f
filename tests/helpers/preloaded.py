"""What the processes of tests are forked with: a server imports it once, because importing takes longer than most tests."""

# ruff: noqa: F401
import os
from pathlib import Path

# On a machine with GPUs DeepSpeed would look at them here, and no process can use them that was forked after that.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

import open_clip.tokenizer
import open_clip.transformer
import pycocotools.mask
import timm.models.vision_transformer
import torch.distributed.checkpoint
import torch.distributed.fsdp
import torch.utils.tensorboard

import mres.evaluate.evaluator
import mres.evaluate.run
import mres.train.session
