"""Made images with as many targets as MRES-32M has: what benches of data read, without downloading anything.

Legend: H×W an image.
"""

import io

import numpy as np
from PIL import Image, ImageDraw

from mres.records import Expression, ImageRecord, Target, encode_mask
from mres.sources.source import RecordSource

HEIGHT, WIDTH = 480, 640
TARGETS = 32
_WORDS = ("red", "blue", "left", "right", "front", "large", "small", "upper")


def made_source(num_images: int, different: int = 64) -> RecordSource:
    """`num_images` records of 640×480 JPEGs (q90, about 80 kB) with 32 masks each, half of them parts, 2 texts a mask.

    There are `different` images; the others repeat them under ids of their own.
    """
    drawn = [_draw(number) for number in range(min(num_images, different))]

    def make(number: int) -> ImageRecord:
        image, targets = drawn[number % len(drawn)]
        return ImageRecord(f"made-{number:07d}", image, WIDTH, HEIGHT, "train", "made", targets)

    return RecordSource(
        "made images", num_images, make, {"format": "made", "num_images": num_images, "different": different}
    )


def _draw(seed: int) -> tuple[bytes, tuple[Target, ...]]:
    random = np.random.default_rng(seed)
    targets = [_target(random, number) for number in range(TARGETS)]
    return _photograph(random), tuple(targets)


def _photograph(random: np.random.Generator) -> bytes:
    """Noise at several scales: its JPEG is as large as a photograph's, and takes as long to decode."""
    picture = np.zeros((HEIGHT, WIDTH, 3))
    for step, strength in ((80, 60), (20, 30), (5, 14), (2, 8)):
        small = random.normal(0, strength, (HEIGHT // step, WIDTH // step, 3))
        for colour in range(3):
            layer = Image.fromarray(small[..., colour].astype(np.float32))
            picture[..., colour] += np.asarray(layer.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    with io.BytesIO() as buffer:
        Image.fromarray(np.clip(picture + 120, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        return buffer.getvalue()


def _target(random: np.random.Generator, number: int) -> Target:
    """A blob with a wavy border: an object of 30 to 150 pixels radius, or a part of a third of that."""
    part = number % 2 == 1
    angle = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    waves = sum(random.uniform(0, 0.12) * np.sin(k * angle + random.uniform(0, 6)) for k in range(1, 9))
    radius = random.uniform(30, 150) / (3 if part else 1) * (1 + waves)
    x = random.uniform(80, WIDTH - 80) + radius * np.cos(angle) / random.uniform(0.6, 1.6)
    y = random.uniform(80, HEIGHT - 80) + radius * np.sin(angle)
    drawn = Image.new("L", (WIDTH, HEIGHT))
    ImageDraw.Draw(drawn).polygon(list(zip(x, y, strict=True)), fill=1)
    mask_HW = np.array(drawn)
    words = random.permutation(_WORDS)[:4]
    texts = (
        f"the {words[0]} {'wheel' if part else 'thing'} {words[1]} of the {words[2]}",
        f"{words[3]} one {number}",
    )
    return Target(
        f"t{number}",
        "part" if part else "object",
        f"thing{number % 7}:wheel" if part else f"thing{number % 7}",
        encode_mask(mask_HW),
        (0.0, 0.0, float(WIDTH), float(HEIGHT)),
        tuple(Expression(text) for text in texts),
        f"t{number - 1}" if part else None,
    )
