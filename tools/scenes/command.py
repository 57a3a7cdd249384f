"""The options of `tools/shard.py build scenes`."""

import argparse
from dataclasses import asdict
from functools import partial

from mres.errors import UserError
from mres.sources.source import RecordSource
from scenes.options import SceneOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--num-images", type=int, required=True, default=argparse.SUPPRESS, metavar="N", help="how many"
    )
    parser.add_argument("--seed", type=int, default=0, help="which scenes")
    parser.add_argument("--split", default="train", help="every split draws its own scenes")
    parser.add_argument("--image-size", type=int, default=128, metavar="PIXELS", help="side of the image")
    parser.add_argument("--relational-share", type=float, default=0.25, help="share of relational expressions")


def scenes(num_images: int, seed: int, split: str, image_size: int, relational_share: float) -> RecordSource:
    """Raises: UserError for numbers out of range."""
    from scenes.scene import scene

    if num_images < 1:
        raise UserError(f"--num-images {num_images}; allowed: 1 or more")
    options = SceneOptions(image_size=image_size, relational_share=relational_share)
    description = {"format": "scenes", "num_images": num_images, "seed": seed, "split": split, **asdict(options)}
    make = partial(scene, seed=seed, split=split, options=options)
    return RecordSource("scenes", num_images, make, description)
