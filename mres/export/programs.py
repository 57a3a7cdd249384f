"""A model as a program that runs without mres: torch.export (model.pt2) and ONNX (model.onnx).

Both take uint8 images and token ids and give mask logits; how an image is normalised is part of them. The numbers of
images and of expressions are free.

Shapes: B images, K expressions an image, S side of the model's square, T tokens, h side of the grid of logits.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mres.errors import UserError
from mres.io.files import write_durably

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

    from mres.evaluate.segmenter import Segmenter

ProgramFormat = Literal["torch", "onnx"]
FILES: dict[ProgramFormat, str] = {"torch": "model.pt2", "onnx": "model.onnx"}
INPUTS, OUTPUT = ("image", "text"), "logits"
_PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime")}
_MOST = 1024  # images, and expressions of each
_LARGE_BYTES = 1_500_000_000  # a file of ONNX must stay below 2 GB; what is larger keeps its weights beside it


class ParityError(Exception):
    """A program does not compute what its model does."""


def check_packages(to: ProgramFormat) -> None:
    """Raises: UserError: what is needed to write and try out such a program is not installed."""
    needed = _PACKAGES.get(to, ())
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise UserError(
            f"--program {to} needs {', '.join(missing)}, not installed here: pip install {' '.join(needed)} "
            "(constraints.txt names the versions that were tested)"
        )


def trace(segmenter: Segmenter) -> ExportedProgram:
    """The model as torch.export sees it, on the CPU."""
    import torch
    from torch import nn
    from torch.export import Dim

    class Program(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = segmenter.model

        def forward(self, image_BCSS: Tensor, text_BKT: Tensor) -> Tensor:
            return segmenter.task.logits(self.model, image_BCSS, text_BKT)

    shape = segmenter.task.shape
    # Two and three: a dimension of one would be taken for one that is always so.
    image_BCSS = torch.zeros(2, 3, shape.side, shape.side, dtype=torch.uint8)
    text_KT, _ = segmenter.task.tokenizer(["the car", "the left wheel of the car", "a wheel"])
    images, expressions = Dim("images", max=_MOST), Dim("expressions", max=_MOST)
    with _quiet(), torch.no_grad():
        return torch.export.export(
            Program().eval(),
            (image_BCSS, text_KT.expand(2, -1, -1).contiguous()),
            dynamic_shapes=({0: images}, {0: images, 1: expressions}),
        )


def write_program(program: ExportedProgram, to: ProgramFormat, folder: Path) -> Path:
    """Writes the program's file (of a large ONNX, two) into `folder` and returns its path."""
    import torch

    path = folder / FILES[to]
    if to == "torch":
        content = io.BytesIO()  # torch itself says of a full disk neither which file it is nor why
        torch.export.save(program, content)
        write_durably(path, content.getbuffer())
        return path
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    with _quiet():
        found = torch.onnx.export(program, dynamo=True, verbose=False, input_names=INPUTS, output_names=[OUTPUT])
        assert found is not None
        found.save(path, external_data=size > _LARGE_BYTES)
    return path


def open_program(path: Path) -> Callable[[Tensor, Tensor], Tensor]:
    """A function from (image_BCSS, text_BKT) to logits_BKhh that runs the file as a user of it would."""
    import torch

    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(image_BCSS: Tensor, text_BKT: Tensor) -> Tensor:
        given = dict(zip(INPUTS, (image_BCSS.numpy(), text_BKT.numpy()), strict=True))
        return torch.from_numpy(session.run([OUTPUT], given)[0])

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporters say about themselves; whether a program is right is measured afterwards."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
