"""A trained model to be asked: an image and expressions to masks. `mres.load` makes one, tools/predict.py uses one.

Shapes: B images, K expressions, S side of the model's square, h side of the grid of logits, T tokens, H×W an image.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mres.checkpoint.opening import Kind
from mres.config import Config
from mres.errors import UserError, near_path
from mres.evaluate.evaluator import MAX_EXPRESSIONS, predicted_masks
from mres.io.files import read_regular
from mres.model.task import SegmentationTask
from mres.pixels.picture import MAX_IMAGE_BYTES, PictureError, upright_picture, upright_rgb
from mres.pretrained.tokenizer_file import check_tokenizer
from mres.pretrained.whole import load_weights, run_config
from mres.stream import transforms
from mres.stream.batch import token_ids, which_cut
from mres.stream.image import paste

ImageLike = str | Path | bytes | Image.Image | np.ndarray


def load(
    source: str | Path,
    *,
    device: str | torch.device | None = None,
    weights: Kind = "model",
    kind: str | None = None,
) -> Segmenter:
    """The model in an exported folder, a run's or checkpoint's folder, or a .safetensors file of mres.

    Args:
        source: of a run, its newest good checkpoint is taken. All hashes are checked before anything is used.
        device: such as "cpu" or "cuda:1"; default: the first GPU, or the CPU where there is none.
        weights: "ema" for the moving average of the weights, where a run has kept one.
        kind: of a model of one's own, path/to/my_model.py:SPEC, where its file has moved.

    Raises:
        UserError: nothing there, damaged, of another version, without an average, or no such device.
    """
    path, where = Path(source), _device(device)
    config = run_config(path, kind)
    task = SegmentationTask(config.model, config.loss)
    check_tokenizer(path.parent if path.is_file() else path, task.tokenizer)
    model = task.build(config.run.seed)
    for note in load_weights(model, config.model, path, weights).notes:
        warnings.warn(note, stacklevel=2)
    return Segmenter(model.eval().to(where), task, config, where)


class TextCut(UserWarning):
    """Expressions were longer than the model reads."""


@dataclass(frozen=True, slots=True)
class Question:
    """What the model is asked, uint8 image and int32 token ids, and where the image lies in the square."""

    image_1CSS: Tensor
    text_KT: Tensor
    geometry: transforms.Geometry


class Segmenter:
    """A model in evaluation mode with all that it needs to answer.

    Attributes:
        model, device: the weights, and where they are.
        config: what the run was trained with.
        task: the tokenizer, the shapes and how images are normalised.
    """

    def __init__(self, model: nn.Module, task: SegmentationTask, config: Config, device: torch.device) -> None:
        self.model, self.task, self.config, self.device = model, task, config, device

    def segment(self, image: ImageLike, texts: str | Sequence[str], *, threshold: float | None = None) -> np.ndarray:
        """What `texts` name in `image`: boolean masks_KHW of the image's size, one an expression, in their order.

        Args:
            image: a path, the bytes of a file, a Pillow image, or uint8 pixels_HW3 in RGB.
            texts: one expression or several.
            threshold: probability from which a pixel is foreground; default: the run's.

        Raises:
            UserError: an image that cannot be read, no or empty expressions, a threshold outside of (0, 1).
        """
        threshold = self.config.evaluate.threshold if threshold is None else threshold
        if not 0 < threshold < 1:
            raise UserError(f"threshold {threshold} must lie between 0 and 1")
        question = self.question(image, texts)
        with torch.no_grad():
            pieces = [self._logits(question.image_1CSS, text) for text in question.text_KT.split(MAX_EXPRESSIONS)]
        logits_Khh = torch.cat(pieces)
        return np.stack(predicted_masks(logits_Khh, question.geometry, self.task.shape.side, threshold))

    def question(self, image: ImageLike, texts: str | Sequence[str]) -> Question:
        """`segment`'s first half, raising as it does: the tensors of an image and its expressions."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts or not all(text.strip() for text in texts):
            raise UserError("an expression is empty; say what to segment, such as 'left wheel of the red car'")
        rgb = read_image(image)
        side = self.task.shape.side
        geometry = transforms.fit(rgb.width, rgb.height, side, self.config.data.resize)
        image_1CSS = torch.empty(1, 3, side, side, dtype=torch.uint8)
        paste(np.array(rgb), geometry, image_1CSS[0])
        text_KT, num_cut = token_ids(self.task.tokenizer, texts, self.task.shape)
        if num_cut:
            length = self.task.shape.text_length
            cut = [text for text, is_cut in zip(texts, which_cut(self.task.tokenizer, texts), strict=True) if is_cut]
            said = f"{num_cut} expression(s) are longer than the model's {length} tokens; the end was cut off: "
            said += ", ".join(f"“{text[:60]}”" for text in cut[:3]) + (", …" if num_cut > 3 else "")
            warnings.warn(said, TextCut, stacklevel=3)
        return Question(image_1CSS, text_KT, geometry)

    def _logits(self, image_1CSS: Tensor, text_KT: Tensor) -> Tensor:
        image, text = image_1CSS.to(self.device), text_KT[None].to(self.device)
        return self.task.logits(self.model, image, text)[0].float()


def read_image(image: ImageLike) -> Image.Image:
    """The image in RGB, upright: the pixels that a shard set built of it holds.

    Raises:
        UserError: nothing there, no image, or pixels of another type or shape.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise UserError(
                f"an image as an array is uint8 of shape (height, width, 3) in RGB; found {image.dtype} {image.shape}"
            )
        return Image.fromarray(image)
    where = f"'{image}'" if isinstance(image, str | Path) else f"the given {type(image).__name__}"
    try:
        if isinstance(image, Image.Image):
            return upright_rgb(image)
        return upright_picture(image if isinstance(image, bytes) else read_regular(Path(image), MAX_IMAGE_BYTES))
    except FileNotFoundError:
        raise UserError(f"no image at {where}{near_path(Path(str(image)))}") from None
    except OSError as error:
        raise UserError(f"{where} cannot be read as an image: {error.strerror}") from None
    except PictureError as error:
        raise UserError(f"{where} {error}") from None


def _device(device: str | torch.device | None) -> torch.device:
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        text = str(error).splitlines()[0]
        raise UserError(f"device '{device}' cannot be used: {text}; device='cpu' always can") from None
    return found
