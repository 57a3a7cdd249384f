"""Makes, describes, checks and combines shard sets: `python tools/shard.py COMMAND --help` (docs/data-format.md)."""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mres.cli import Parser
from mres.errors import UserError, exit_on_user_error
from mres.sources.registry import SOURCES, SourceFormat

# What the demo draws is no format of others: it lies beside this command (tools/scenes/).
_MAX_ID_FILE = 1 << 30
BUILDS = {"scenes": SourceFormat("scenes.command", "scenes", "procedural scenes"), **SOURCES}


def parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """All commands; of the sources only the one that `argv` names is imported, for its options."""
    top = Parser(prog="shard.py", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="make a shard set from annotations and images")
    sources = build.add_subparsers(dest="source", required=True)
    for name, entry in BUILDS.items():
        defaults = argparse.ArgumentDefaultsHelpFormatter
        source = sources.add_parser(name, help=entry.help, description=entry.help, formatter_class=defaults)
        source.add_argument("out", type=Path, help="the folder to make")
        if name in argv[1:2]:
            entry.add_arguments(source)
        _build_arguments(source)
    _info_arguments(commands.add_parser("info", help="what a shard set holds"))
    _verify_arguments(
        commands.add_parser("verify", help="hash and parse everything again; exit code 1 if anything is damaged")
    )
    _leakcheck_arguments(
        commands.add_parser("leakcheck", help="find images of held-out sets; the result goes into the manifest")
    )
    _filter_arguments(commands.add_parser("filter", help="a view of a set with some of its records; no data is copied"))
    _merge_arguments(commands.add_parser("merge", help="a view of several sets as one; no data is copied"))
    return top


def _build_arguments(build: argparse.ArgumentParser) -> None:
    build.add_argument("--format", choices=("tar", "mds"), default="tar", help="WebDataset tars or MosaicML MDS")
    build.add_argument("--images-per-shard", type=int, default=1000, metavar="N", help="records of one shard file")
    build.add_argument(
        "--max-side",
        type=int,
        metavar="PIXELS",
        help="re-encode larger images; without it upright 8-bit images keep every byte",
    )
    build.add_argument("--quality", type=int, default=92, metavar="Q", help="of JPEGs that --max-side re-encodes")
    build.add_argument(
        "--max-bad-fraction", type=float, default=0.0, metavar="F", help="share of records left out if bad"
    )
    build.add_argument(
        "--max-empty-fraction",
        type=float,
        default=0.5,
        metavar="F",
        help="share of masks that may have no pixel though nothing says so (no_target)",
    )
    build.add_argument(
        "--orientation",
        choices=("auto", "upright", "stored"),
        default="auto",
        help="what masks of images with an EXIF orientation were drawn on; auto: sizes tell, or else upright",
    )
    build.add_argument("--overwrite", action="store_true", help="replace an existing shard set")
    _workers(build)


def _workers(command: argparse.ArgumentParser) -> None:
    cores = len(os.sched_getaffinity(0))
    command.add_argument(
        "--workers", type=int, default=cores, metavar="N", help="processes (default: the cores); 0 works in this one"
    )


def _info_arguments(info: argparse.ArgumentParser) -> None:
    info.add_argument("set", help="folder or URL")
    info.add_argument(
        "--mirroring", action="store_true", help="instead: which expressions keep images from being mirrored"
    )
    info.add_argument("--json", action="store_true", help="machine-readable")


def _verify_arguments(verify: argparse.ArgumentParser) -> None:
    verify.add_argument("set", help="folder or URL")
    _workers(verify)


def _leakcheck_arguments(leakcheck: argparse.ArgumentParser) -> None:
    leakcheck.add_argument("set", help="folder of the set that is to be trained on")
    leakcheck.add_argument("--against", nargs="+", required=True, metavar="SET", help="held-out shard sets")
    leakcheck.add_argument(
        "--max-distance", type=int, default=4, metavar="BITS", help="of 64: perceptual hashes this near are one image"
    )
    _workers(leakcheck)


def _filter_arguments(view: argparse.ArgumentParser) -> None:
    view.add_argument("set", help="folder of a shard set")
    view.add_argument("out", type=Path, help="the folder to make")
    view.add_argument("--drop-leaks", action="store_true", help="without what leakcheck found")
    view.add_argument("--split", nargs="+", metavar="NAME", help="only records of these splits")
    view.add_argument("--ids", type=Path, metavar="FILE", help="only these records: one id a line")
    view.add_argument("--without-ids", type=Path, metavar="FILE", help="without these records: one id a line")
    view.add_argument(
        "--with", dest="granularity", choices=("object", "part"), help="only records that have such targets"
    )
    view.add_argument("--min-expressions", type=int, default=0, metavar="N", help="only records with at least N")
    view.add_argument("--overwrite", action="store_true", help="replace an existing shard set")
    _workers(view)


def _merge_arguments(merge: argparse.ArgumentParser) -> None:
    merge.add_argument("out", type=Path, help="the folder to make")
    merge.add_argument("sets", nargs="+", metavar="set", help="folders of shard sets")
    merge.add_argument("--overwrite", action="store_true", help="replace an existing shard set")
    _workers(merge)


def _build(arguments: argparse.Namespace) -> int:
    from mres.shards.workspace import check_free
    from mres.shards.writer import WriteOptions, write_shards

    options = WriteOptions(
        images_per_shard=arguments.images_per_shard,
        max_bad_fraction=arguments.max_bad_fraction,
        max_empty_fraction=arguments.max_empty_fraction,
        overwrite=arguments.overwrite,
        workers=arguments.workers,
        max_side=arguments.max_side,
        quality=arguments.quality,
        layout=arguments.format,
        orientation=arguments.orientation,
    )
    _check_inputs_stay(arguments)
    check_free(arguments.out, overwrite=arguments.overwrite)
    source = BUILDS[arguments.source].open(arguments)
    manifest = write_shards(source, arguments.out, options)
    for message, number in source.notes.items():
        print(f"note: {message}: {number}")
    print(f"{arguments.out}: {manifest.summary()}")
    return 0


def _check_inputs_stay(arguments: argparse.Namespace) -> None:
    """--overwrite must not remove a file or folder that this command reads."""
    out = arguments.out.resolve()
    for name, path in vars(arguments).items():
        if name != "out" and isinstance(path, Path) and path.resolve().is_relative_to(out):
            raise UserError(
                f"'{arguments.out}' would be replaced with '{path}' in it, which is read; name another folder"
            )


def _filter(arguments: argparse.Namespace) -> int:
    from mres.shards.view import Condition, filter_set

    _check_inputs_stay(arguments)
    condition = Condition(
        splits=frozenset(arguments.split) if arguments.split else None,
        ids=_id_file(arguments.ids),
        without_ids=_id_file(arguments.without_ids),
        granularity=arguments.granularity,
        min_expressions=arguments.min_expressions,
        drop_leaks=arguments.drop_leaks,
    )
    manifest = filter_set(
        arguments.out, arguments.set, condition, workers=arguments.workers, overwrite=arguments.overwrite
    )
    print(f"{arguments.out}: {manifest.summary()}")
    return 0


def _id_file(path: Path | None) -> frozenset[str] | None:
    if path is None:
        return None
    from mres.io.files import read_regular

    try:
        lines = read_regular(path, _MAX_ID_FILE).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the ids in '{path}': {error}") from None
    ids = frozenset(line.strip() for line in lines if line.strip())
    if not ids:
        raise UserError(f"'{path}' names no id; expected one a line")
    return ids


def _merge(arguments: argparse.Namespace) -> int:
    from mres.shards.view import merge_sets

    manifest = merge_sets(arguments.out, arguments.sets, workers=arguments.workers, overwrite=arguments.overwrite)
    print(f"{arguments.out}: {manifest.summary()}")
    return 0


def _leakcheck(arguments: argparse.Namespace) -> int:
    from mres.shards.leaks import LEAKS_NAME, find_leaks

    manifest = find_leaks(
        arguments.set, arguments.against, max_distance=arguments.max_distance, workers=arguments.workers
    )
    found = manifest.leakcheck
    assert found is not None
    held_out = sum(found.against.values())
    print(f"{arguments.set}: {found.leaks} of {found.images} images are among the {held_out} held-out ones "
          f"({found.by_id} by COCO id, {found.by_hash} by perceptual hash)")  # fmt: skip
    if found.leaks:
        print(
            f"listed in {Path(arguments.set) / LEAKS_NAME}; `shard.py filter {arguments.set} OUT --drop-leaks` leaves them out"
        )
    return 0


def _info(arguments: argparse.Namespace) -> int:
    if arguments.mirroring:
        from mres.stream import mirroring

        return mirroring.show(arguments.set, as_json=arguments.json)
    from mres.shards.info import show

    return show(arguments.set, as_json=arguments.json)


def _verify(arguments: argparse.Namespace) -> int:
    from mres.shards.verify import report_damage

    return report_damage(arguments.set, workers=arguments.workers)


COMMANDS = {
    "build": _build,
    "info": _info,
    "verify": _verify,
    "leakcheck": _leakcheck,
    "filter": _filter,
    "merge": _merge,
}


@exit_on_user_error
def main() -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no Unicode
    arguments = parser(sys.argv[1:]).parse_args()
    return COMMANDS[arguments.command](arguments)


if __name__ == "__main__":
    sys.exit(main())
