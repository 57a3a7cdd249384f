"""How images come to a model."""

from torch import Tensor

# CLIP's, so that its towers see what they were trained on (openai/CLIP, clip.py).
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


def normalise(image_BCSS: Tensor) -> Tensor:
    """uint8 RGB to float32 with CLIP's mean and standard deviation.

    By plain numbers: a tensor of them would be copied to the GPU each time, and the host would wait for all before it.
    """
    pixels_BCSS = image_BCSS.float().div_(255)
    for channel, (mean, std) in enumerate(zip(_MEAN, _STD, strict=True)):
        pixels_BCSS[:, channel].sub_(mean).div_(std)
    return pixels_BCSS
