"""Makes, describes and checks shard sets: `python tools/shard.py build|info|verify …` (docs/data-format.md)."""

import argparse
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mres.errors import exit_on_user_error

if TYPE_CHECKING:
    from mres.sources.source import Source


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="shard.py", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="make a shard set").add_subparsers(dest="source", required=True)
    for name, add_arguments, text in (
        ("scenes", _scenes_arguments, "procedural scenes"),
        ("coco", _coco_arguments, "COCO-format part annotations"),
        ("jsonl", _jsonl_arguments, "MRES JSONL: your own data"),
    ):
        source = build.add_parser(name, help=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        source.add_argument("out", type=Path, help="the folder to make")
        add_arguments(source)
        _common_arguments(source)
    info = commands.add_parser("info", help="what a shard set holds")
    info.add_argument("folder", type=Path)
    info.add_argument("--json", action="store_true", help="machine-readable")
    verify = commands.add_parser("verify", help="hash and parse everything again; exit code 1 if anything is damaged")
    verify.add_argument("folder", type=Path)
    return top


def _scenes_arguments(build: argparse.ArgumentParser) -> None:
    build.add_argument("--num-images", type=int, required=True, default=argparse.SUPPRESS, metavar="N", help="how many")
    build.add_argument("--seed", type=int, default=0, help="which scenes")
    build.add_argument("--split", default="train", help="every split draws its own scenes")
    build.add_argument("--image-size", type=int, default=128, metavar="PIXELS", help="side of the image")
    build.add_argument("--relational-share", type=float, default=0.25, help="share of relational expressions")
    build.add_argument("--workers", type=int, default=0, metavar="N", help="further processes that draw")


def _coco_arguments(build: argparse.ArgumentParser) -> None:
    build.add_argument(
        "--annotations", type=Path, required=True, default=argparse.SUPPRESS, metavar="FILE", help="the COCO JSON"
    )
    build.add_argument(
        "--images", type=Path, required=True, default=argparse.SUPPRESS, metavar="DIR", help="the folder of its images"
    )
    build.add_argument(
        "--split", choices=("train", "val"), required=True, default=argparse.SUPPRESS, help="which of the two"
    )
    build.add_argument("--val-images", type=int, default=50, metavar="N", help="how many images are held out")
    build.add_argument("--seed", type=int, default=0, help="which ones are held out")
    build.add_argument("--whole", default="car", metavar="NAME", help="what the parts belong to; '' for none")
    build.add_argument(
        "--separate",
        action="append",
        default=[],
        metavar="CATEGORY",
        help="each polygon of this category is an instance of its own; may be repeated",
    )
    build.add_argument("--instances", action="store_true", help="also single instances told apart by position")


def _jsonl_arguments(build: argparse.ArgumentParser) -> None:
    build.add_argument(
        "--records", type=Path, required=True, default=argparse.SUPPRESS, metavar="FILE", help="one record a line"
    )
    build.add_argument("--split", help="take only the records of this split")
    build.add_argument("--allow-outside", action="store_true", help="accept image paths outside of the file's folder")


def _common_arguments(build: argparse.ArgumentParser) -> None:
    build.add_argument("--images-per-shard", type=int, default=1000, metavar="N", help="records of one tar file")
    build.add_argument(
        "--max-bad-fraction", type=float, default=0.0, metavar="F", help="share of records left out if bad"
    )
    build.add_argument("--overwrite", action="store_true", help="replace an existing shard set")


def _scenes(arguments: argparse.Namespace) -> "Source":
    from mres.sources.parallel import in_order
    from mres.sources.scenes import SceneOptions, scene
    from mres.sources.source import Source

    options = SceneOptions(image_size=arguments.image_size, relational_share=arguments.relational_share)
    count, seed, split = arguments.num_images, arguments.seed, arguments.split
    description = {"format": "scenes", "num_images": count, "seed": seed, "split": split, **asdict(options)}
    draw = partial(scene, seed=seed, split=split, options=options)
    records = in_order(draw, count, arguments.workers) if arguments.workers else map(draw, range(count))
    return Source("scenes", records, count, description)


def _coco(arguments: argparse.Namespace) -> "Source":
    from mres.sources.coco import coco_parts

    return coco_parts(
        arguments.annotations,
        arguments.images,
        split=arguments.split,
        val_images=arguments.val_images,
        seed=arguments.seed,
        whole=arguments.whole or None,
        instances=arguments.instances,
        separate=arguments.separate,
    )


def _jsonl(arguments: argparse.Namespace) -> "Source":
    from mres.sources.mres_jsonl import mres_jsonl

    return mres_jsonl(arguments.records, split=arguments.split, allow_outside=arguments.allow_outside)


def _build(arguments: argparse.Namespace) -> int:
    from mres.progress import track
    from mres.shards.writer import WriteOptions, write_shards

    options = WriteOptions(arguments.images_per_shard, arguments.max_bad_fraction, arguments.overwrite)
    source = {"scenes": _scenes, "coco": _coco, "jsonl": _jsonl}[arguments.source](arguments)
    records = track(source, len(source), f"writing {arguments.out}")
    manifest = write_shards(
        records,
        arguments.out,
        source=source.description,
        name=source.name,
        total=len(source),
        options=options,
    )
    for message, number in source.notes.items():
        print(f"note: {message}: {number}")
    print(f"{arguments.out}: {manifest.summary()}")
    return 0


@exit_on_user_error
def main() -> int:
    arguments = parser().parse_args()
    if arguments.command == "build":
        return _build(arguments)
    if arguments.command == "info":
        from mres.shards.info import show

        return show(arguments.folder, as_json=arguments.json)
    from mres.shards.verify import report_damage

    return report_damage(arguments.folder)


if __name__ == "__main__":
    sys.exit(main())
