"""Model and loss: what the trainer trains without knowing it.

Shapes: B images, S side of the square, K expressions an image, h side of the grid of logits.
"""

import torch
from torch import Tensor, nn

from mres.model.config import LossConfig, ModelConfig
from mres.model.initial import initial_weights
from mres.model.loss import mask_losses
from mres.model.text import Tokenizer
from mres.model.unires.unires import UniRES
from mres.stream.batch import Batch, StreamShape

# CLIP's, so that its towers see what they were trained on (openai/CLIP, clip.py).
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


class SegmentationTask:
    """Referring-expression segmentation with UniRES."""

    def __init__(self, model: ModelConfig, loss: LossConfig) -> None:
        self._model, self._loss = model, loss
        self.tokenizer = Tokenizer(model.text_vocab_size, model.text_length)

    @property
    def shape(self) -> StreamShape:
        return StreamShape(self._model.image_size, self._model.mask_stride, self._model.text_length)

    def outline(self) -> UniRES:
        """The model without memory for its parameters; `mres.model.initial.initial_weights` has their first values."""
        return UniRES.outline(self._model)

    @torch.no_grad()
    def build(self, seed: int) -> UniRES:
        """The whole model on the CPU, its weights drawn from `seed`, the same on every rank."""
        model = UniRES(self._model)
        for name, value in initial_weights(model, seed):
            model.get_parameter(name).copy_(value)
        return model

    def logits(self, module: nn.Module, image_BCSS: Tensor, text_BKT: Tensor) -> Tensor:
        """uint8 images and token ids to mask logits_BKhh."""
        logits_BKhh: Tensor = module(normalise(image_BCSS), text_BKT)
        return logits_BKhh

    def losses(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Sums over the valid expressions of `batch`: "loss" (to differentiate) and its parts."""
        logits_BKhh = self.logits(module, batch.image_BCSS, batch.text_BKT)
        return mask_losses(logits_BKhh, batch.mask_BKhh.float() / 255, batch.valid_BK, self._loss)


def normalise(image_BCSS: Tensor) -> Tensor:
    """uint8 RGB to float32 with CLIP's mean and standard deviation.

    By plain numbers: a tensor of them would be copied to the GPU each time, and the host would wait for all before it.
    """
    pixels_BCSS = image_BCSS.float().div_(255)
    for channel, (mean, std) in enumerate(zip(_MEAN, _STD, strict=True)):
        pixels_BCSS[:, channel].sub_(mean).div_(std)
    return pixels_BCSS
