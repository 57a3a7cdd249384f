"""Images in the model's square: as Pillow's full decoding and resizing would have them, damage named.

Shapes: C = 3 colours, S side of the square, H×W an image.
"""

import io
import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from mres.records import ImageRecord, RecordError, encode_mask
from mres.stream import transforms
from mres.stream.config import AugmentConfig, DataConfig
from mres.stream.image import FILL, jitter, paste, square_image
from mres.stream.order import rng
from mres.stream.transforms import Geometry


def record_of(
    drawn: Image.Image, suffix: str = "PNG", *, saved: dict[str, Any] | None = None, **changes: Any
) -> ImageRecord:
    with io.BytesIO() as buffer:
        drawn.save(buffer, suffix, **(saved or {}))
        content = buffer.getvalue()
    fields = {"id": "im7", "image": content, "width": drawn.width, "height": drawn.height, "split": "train"}
    return ImageRecord(**{**fields, "source": "made", "targets": (), **changes})


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def scene(width: int, height: int) -> Image.Image:
    """Blobs of colour with some grain, as a photograph has."""
    coarse = np.asarray(noise(width // 20 + 2, height // 20 + 2).resize((width, height), Image.Resampling.BICUBIC))
    grain = np.random.default_rng(1).normal(0, 6, coarse.shape)
    return Image.fromarray(np.clip(coarse + grain, 0, 255).astype(np.uint8))


def squared(record: ImageRecord, geometry: Geometry, side: int) -> np.ndarray:
    image_CSS = torch.zeros(3, side, side, dtype=torch.uint8)
    square_image(record, geometry, image_CSS, "set/shard-000000.tar: 00000003")
    return image_CSS.numpy().astype(int)


def by_pillow(record: ImageRecord, geometry: Geometry, side: int) -> np.ndarray:
    """Decoded whole, cut and resized by Pillow, pasted, mirrored."""
    left, top, right, bottom = geometry.rect
    decoded = Image.open(io.BytesIO(record.image)).convert("RGB")
    cut = decoded.resize((right - left, bottom - top), Image.Resampling.BICUBIC, box=geometry.box)
    square = Image.new("RGB", (side, side), FILL)
    square.paste(cut, (left, top))
    image_SSC = np.asarray(square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if geometry.flipped else square)
    return image_SSC.transpose(2, 0, 1).astype(int)


def assert_close(image_CSS: np.ndarray, expected_CSS: np.ndarray) -> None:
    difference_CSS = np.abs(image_CSS - expected_CSS)
    assert difference_CSS.max() <= 2
    assert difference_CSS.mean() < 0.3


@pytest.mark.parametrize("suffix", ["JPEG", "PNG"])
@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
@pytest.mark.parametrize(
    ("size", "side"), [((320, 240), 224), ((240, 320), 224), ((250, 187), 240), ((96, 96), 96), ((61, 40), 96)]
)
def test_without_augmentation_it_is_what_pillow_makes(
    size: tuple[int, int], side: int, resize: str, suffix: str
) -> None:
    """Pillow's resize and torch's round their weights differently, by no more than two levels."""
    record, geometry = record_of(scene(*size), suffix), transforms.fit(*size, side, resize)
    assert_close(squared(record, geometry, side), by_pillow(record, geometry, side))


@pytest.mark.parametrize("how", [{"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"quality": 20}])
def test_jpegs_of_every_kind_are_decoded_as_by_pillow(how: dict[str, Any]) -> None:
    record, geometry = record_of(scene(97, 75), "JPEG", saved=how), transforms.fit(97, 75, 97, "letterbox")
    assert (squared(record, geometry, 97) == by_pillow(record, geometry, 97)).all()


def test_cuts_zooms_and_shifts_are_exact() -> None:
    config = DataConfig(augment=AugmentConfig(flip=0.5, zoom=(0.5, 3.0), shift=0.3))
    record = record_of(scene(131, 94))
    seen = [transforms.augmented(record, 96, config, rng(0, epoch)) for epoch in range(60)]
    for geometry in seen:
        assert_close(squared(record, geometry, 96), by_pillow(record, geometry, 96))
    assert len({(g.rect, g.flipped) for g in seen}) > 40


@pytest.mark.parametrize("size", [(1200, 900), (1023, 771), (900, 1201)])
@pytest.mark.parametrize("side", [448, 224, 96])
@pytest.mark.parametrize("zoom", [1.0, 1.3])
def test_a_large_jpeg_is_decoded_small_and_nothing_moves(size: tuple[int, int], side: int, zoom: float) -> None:
    """Waves of 90 pixels: a shift by half a pixel of the image would already change some values by four levels."""
    x, y = np.arange(size[0]), np.arange(size[1])[:, None]
    waves = [np.sin((x * a + y * b) * 2 * np.pi / 90 + c) for a, b, c in ((1, 0, 0), (0, 1, 1), (0.7, 0.7, 2))]
    drawn = Image.fromarray((127.5 + 120 * np.stack(waves, axis=-1)).astype(np.uint8))
    record = record_of(drawn, "JPEG", saved={"quality": 98, "subsampling": 0})
    config = DataConfig(augment=AugmentConfig(flip=0, zoom=(zoom, zoom)))
    geometry = transforms.augmented(record, side, config, rng(0))
    difference_CSS = np.abs(squared(record, geometry, side) - by_pillow(record, geometry, side))
    left, top, right, bottom = geometry.rect
    assert difference_CSS.max() <= 8
    assert difference_CSS[:, top + 1 : bottom - 1, left + 1 : right - 1].max() <= 4
    assert difference_CSS.mean() < 1.5


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
@pytest.mark.parametrize("suffix", ["PNG", "JPEG"])
def test_every_colour_mode_becomes_rgb(mode: str, suffix: str) -> None:
    if (mode, suffix) in (("CMYK", "PNG"), ("RGBA", "JPEG"), ("P", "JPEG")):
        return  # there is no such file
    record, geometry = record_of(scene(40, 30).convert(mode), suffix), transforms.fit(40, 30, 40, "letterbox")
    assert (squared(record, geometry, 40) == by_pillow(record, geometry, 40)).all()


def test_what_libjpeg_complains_of_and_can_read_is_read() -> None:
    """Stray bytes between markers: the strict decoder refuses them, Pillow is asked."""
    content = record_of(scene(40, 30), "JPEG").image
    stray = content[:2] + content[2:].replace(b"\xff\xda", b"\x00\x00\x00\xff\xda", 1)
    record, geometry = record_of(noise(40, 30), image=stray), transforms.fit(40, 30, 40, "letterbox")
    assert (squared(record, geometry, 40) == by_pillow(record, geometry, 40)).all()


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (64, 64), (37, 91)])
def test_a_flip_mirrors_the_image(size: tuple[int, int]) -> None:
    plain = transforms.fit(*size, 64, "letterbox")
    flipped = Geometry(plain.width, plain.height, plain.box, plain.rect, flipped=True)
    one, other = (squared(record_of(noise(*size)), geometry, 64) for geometry in (plain, flipped))
    assert (other == one[:, :, ::-1]).all()


def test_image_and_mask_stay_aligned_under_augmentation() -> None:
    """A white ellipse on black: the image itself is its mask."""
    config = DataConfig(augment=AugmentConfig(flip=0.5, zoom=(0.5, 2.0), shift=0.3))
    y, x = np.mgrid[:60, :90]
    mask_HW = ((y - 27) / 17) ** 2 + ((x - 50) / 22) ** 2 < 1
    record = record_of(Image.fromarray(np.repeat(mask_HW[..., None] * np.uint8(255), 3, axis=2)))
    seen = set()
    for epoch in range(60):
        geometry = transforms.augmented(record, 64, config, rng(0, epoch, "im7", "augment"))
        image_CSS = squared(record, geometry, 64)
        (mask_SS,) = transforms.square_masks([encode_mask(mask_HW)], geometry, 64, 1)
        left, top, right, bottom = geometry.rect
        inside = (slice(top, bottom), slice(left, right))
        if geometry.flipped:
            inside = (slice(top, bottom), slice(64 - right, 64 - left))
        assert np.abs(image_CSS[0][inside] - mask_SS[inside]).mean() < 8
        assert 0 <= left < right <= 64
        assert 0 <= top < bottom <= 64
        seen.add(geometry)
    assert len(seen) == 60
    assert {g.flipped for g in seen} == {True, False}
    assert len({g.rect for g in seen}) > 20


def test_pixels_that_are_decoded_already_are_placed_alike() -> None:
    record, geometry = record_of(scene(50, 30)), transforms.fit(50, 30, 64, "letterbox")
    image_CSS = torch.zeros(3, 64, 64, dtype=torch.uint8)
    paste(np.array(Image.open(io.BytesIO(record.image))), geometry, image_CSS)
    assert (image_CSS.numpy() == squared(record, geometry, 64)).all()


def random_square() -> Tensor:
    return torch.from_numpy(np.array(scene(64, 64)).transpose(2, 0, 1).copy())


@pytest.mark.parametrize(("brightness", "contrast"), [(0.4, 0.0), (0.0, 0.4), (0.5, 0.5)])
def test_jitter_is_pillows_brightness_and_contrast(brightness: float, contrast: float) -> None:
    augment = AugmentConfig(brightness=brightness, contrast=contrast)
    for seed in range(20):
        image_CSS = random_square()
        expected = Image.fromarray(image_CSS.numpy().transpose(1, 2, 0))
        for enhance, most, drawn in zip(
            (ImageEnhance.Brightness, ImageEnhance.Contrast), (brightness, contrast), rng(seed).uniform(-1, 1, 2),
            strict=True,
        ):  # fmt: skip
            expected = enhance(expected).enhance(1 + most * drawn)
        jitter(image_CSS, augment, rng(seed))
        assert np.abs(image_CSS.numpy().transpose(1, 2, 0).astype(int) - np.asarray(expected)).max() <= 1


def test_jitter_switched_off_changes_nothing_and_draws_as_much() -> None:
    image_CSS, generators = random_square(), (rng(0), rng(0))
    jitter(image_CSS, AugmentConfig(), generators[0])
    assert torch.equal(image_CSS, random_square())
    jitter(image_CSS, AugmentConfig(brightness=0.5), generators[1])
    assert not torch.equal(image_CSS, random_square())
    assert generators[0].random() == generators[1].random()


def decode(record: ImageRecord, side: int = 32) -> None:
    squared(record, transforms.fit(record.width, record.height, side, "letterbox"), side)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image": b"no image"}, "set/shard-000000.tar: 00000003: record 'im7': the image is a text"),
        ({"image": b""}, "record 'im7': the image is empty"),
        ({"width": 41}, "record 'im7': the image is 40 x 30 pixels, the record says 41 x 30"),
    ],
)
def test_an_image_that_does_not_fit_its_record_is_named(changes: dict, words: str) -> None:
    with pytest.raises(RecordError, match=words):
        decode(record_of(noise(40, 30), **changes))


@pytest.mark.parametrize("suffix", ["JPEG", "PNG"])
@pytest.mark.parametrize("side", [200, 90, 20])
def test_truncated_images_are_refused_however_little_is_missing(suffix: str, side: int) -> None:
    whole = record_of(scene(200, 150), suffix)
    decode(whole, side)
    for kept in (0.3, 0.6, 0.9, 0.99):
        content = whole.image[: int(kept * len(whole.image))]
        with pytest.raises(RecordError, match="00000003: record 'im7': the image cannot be decoded"):
            decode(record_of(noise(200, 150), suffix, image=content), side)


@pytest.mark.parametrize("suffix", ["JPEG", "PNG"])
def test_damaged_images_are_record_errors_and_nothing_else(suffix: str) -> None:
    record = record_of(noise(40, 30), suffix)
    draw, refused = random.Random(0), 0
    for _ in range(300):
        content = bytearray(record.image)
        for _ in range(draw.randint(1, 7)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        try:
            decode(record_of(noise(40, 30), suffix, image=bytes(content)))
        except RecordError:
            refused += 1
    assert refused > 20
