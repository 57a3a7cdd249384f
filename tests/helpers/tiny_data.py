"""Small drawn images with exact masks: what every test that trains or streams reads; no dependence on any source."""

import io

import numpy as np
from PIL import Image, ImageDraw

from mres.records import Expression, ImageRecord, Target, encode_mask

SIZES = ((64, 48), (37, 91), (50, 50), (91, 37))  # (width, height); odd ones on purpose
COLOURS = {"red": (220, 40, 40), "green": (40, 190, 60), "blue": (50, 70, 220), "yellow": (230, 210, 40)}


def make_record(index: int, *, split: str = "train", size: tuple[int, int] | None = None) -> ImageRecord:
    """Two boxes of different colours, each an object whose upper half is a part; 4 to 6 expressions."""
    width, height = size or SIZES[index % len(SIZES)]
    random = np.random.default_rng([index, split == "train"])
    image = Image.fromarray(random.integers(90, 130, (height, width, 3), dtype=np.uint8))
    names = [str(name) for name in random.permutation(list(COLOURS))[:2]]
    targets: list[Target] = []
    for side, name in enumerate(names):
        x, y = int(width * (0.05 + side * 0.5)), int(height * random.uniform(0.05, 0.3))
        w, h = int(width * random.uniform(0.25, 0.4)), int(height * random.uniform(0.4, 0.6))
        ImageDraw.Draw(image).rectangle((x, y, x + w - 1, y + h - 1), fill=COLOURS[name])
        texts = [Expression(f"the {name} box", "colour"), Expression(f"the {('left', 'right')[side]} box", "position")]
        texts = texts[: 1 + (index % 5 and (index + side) % 3)]
        targets += [
            _target(f"o{side}", "object", "box", (x, y, w, h), (width, height), texts),
            _target(
                f"p{side}", "part", "box:top", (x, y, w, h // 2), (width, height),
                [Expression(f"the top of the {name} box", "part")], parent=f"o{side}",
            ),
        ]  # fmt: skip
    with io.BytesIO() as buffer:
        image.save(buffer, "PNG")
        content = buffer.getvalue()
    return ImageRecord(f"im{index}", content, width, height, split, "tiny", tuple(targets))


def _target(
    id_: str, granularity, category: str, box: tuple[int, int, int, int], size: tuple[int, int], texts, parent=None
) -> Target:  # fmt: skip
    x, y, w, h = box
    mask_HW = np.zeros((size[1], size[0]), np.uint8)
    mask_HW[y : y + h, x : x + w] = 1
    return Target(id_, granularity, category, encode_mask(mask_HW), box, tuple(texts), parent)
