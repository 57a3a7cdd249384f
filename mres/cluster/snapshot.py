"""What a job runs: code and config as they were when it was submitted, kept in the run's folder.

    <run>/snapshot/{config.yaml, ds_config.json, info.json, code/{mres, launch, …}, own/…}

A job that has waited for a week, or is requeued after one, runs that: an edit does not reach it. Paths in the config keep
their meaning, since a job runs in the working directory that it was submitted from.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import mres
from mres.cluster.code_files import CODE, Checkout, checkout, mres_files, own_files
from mres.cluster.options import SNAPSHOT_MIB
from mres.cluster.script import Program
from mres.cluster.values import told_command
from mres.config import Config
from mres.errors import UserError
from mres.io.copies import copy_files
from mres.io.files import fsync, write_durably
from mres.io.staged import staged
from mres.supervise.software import SNAPSHOT_INFO

SNAPSHOT = "snapshot"
_CONFIG, _DS_CONFIG = "config.yaml", "ds_config.json"
_ROOT = Path(mres.__file__).resolve().parents[1]
_LEAST_BYTES = 4096  # of a file on a disk
_LARGEST = 3  # files that a message names


def program_of_job(
    options: argparse.Namespace, config: Config, overrides: Sequence[str], launch: Path, like: Program | None = None
) -> Program:
    """What the job is to run: a snapshot, which is taken unless this is a dry run, or (`--no-snapshot`) what lies here.

    Args:
        overrides: what makes `config` of the file that `options` name.
        launch: the folder of the scripts that start training.
        like: of a job that was just made of the same code.

    Raises:
        UserError, OSError: as `take`; an option without effect.
    """
    if options.no_snapshot:
        if options.snapshot_limit is not None:
            raise UserError("--snapshot-limit has no effect with --no-snapshot; remove one of them")
        argv = ("--config", str(options.config.absolute()), *overrides)
        return Program(launch.parent, argv, Path.cwd())
    if not options.dry_run:
        limit_mib = options.snapshot_limit or SNAPSHOT_MIB
        said = take(config.run_dir, config, launch, limit_mib, like.code.parent if like else None)
        if like is None:
            print(f"snapshot: {said}")
    folder = config.run_dir.absolute() / SNAPSHOT
    return Program(folder / CODE, ("--config", str(folder / _CONFIG)), Path.cwd())


def take(run_dir: Path, config: Config, launch: Path, limit_mib: int, twin: Path | None = None) -> str:
    """Puts a snapshot into the run's folder, in the place of one that is there; returns what it holds, in words.

    Args:
        launch: the folder of the scripts that start training.
        twin: the folder of a snapshot that was just taken of the same code.

    Raises:
        UserError: more than `limit_mib` of files, or one that cannot be read.
        OSError: the folder takes no files; what was there is there still.
    """
    git = checkout(_ROOT)
    code = mres_files(_ROOT, launch, git.names if git else (), _no_code(config, run_dir))
    own, names = own_files([config.model.kind, *config.train.callbacks], _ROOT, code)
    if config.parallel.ds_config is not None:
        own[_DS_CONFIG] = Path(config.parallel.ds_config)
    files = code | own
    size = _checked_size(files, limit_mib)
    final = run_dir.absolute() / SNAPSHOT
    with staged(final) as stage:
        copy_files(code, stage.result, twin)
        copy_files(own, stage.result)
        write_durably(stage.result / _CONFIG, _config_text(config, final, names).encode())
        info = _info(git, len(files), size)
        write_durably(stage.result / SNAPSHOT_INFO, json.dumps(info, indent=1).encode())
        fsync(stage.result)
        stage.commit()
    commit = f"commit {git.sha[:10]} and {len(git.uncommitted)} change(s)" if git else "no commit"
    return f"{len(files)} files, {size / 2**20:.1f} MiB, {commit}, in {final}"


def _no_code(config: Config, run_dir: Path) -> list[Path]:
    """What the config names that may lie among the code, and is none."""
    data, weights = config.data, config.checkpoint
    named = [*(chosen.path for chosen in data.train_sets), data.val, data.cache_dir, config.run.dir, run_dir]
    named += [weights.init_from, weights.text_weights, weights.image_weights]
    return [Path(place) for place in named if place is not None]


def _checked_size(files: Mapping[str, Path], limit_mib: int) -> int:
    sizes = {}
    for path in files.values():
        if not os.access(path, os.R_OK):
            raise UserError(
                f"'{path}' cannot be read, so the job's snapshot would lack it; have git ignore it, or --no-snapshot"
            )
        sizes[path] = max(_LEAST_BYTES, path.stat().st_size)
    size = sum(sizes.values())
    if size > limit_mib * 2**20:
        largest = sorted(sizes, key=lambda path: -sizes[path])[:_LARGEST]
        shown = ", ".join(f"'{path}' ({sizes[path] / 2**20:.1f} MiB)" for path in largest)
        raise UserError(
            f"the job's snapshot would have {len(files)} files of {size / 2**20:.1f} MiB, and --snapshot-limit is "
            f"{limit_mib} MiB; the largest: {shown}. Have git ignore what is no code (.gitignore), raise "
            "--snapshot-limit, or go without (--no-snapshot)"
        )
    return size


def _config_text(config: Config, final: Path, names: Mapping[str, str]) -> str:
    """The resolved config, which names the snapshot's copies of the user's files."""
    values: dict[str, Any] = yaml.safe_load(config.to_yaml())
    moved = {reference: f"{final / name}" for reference, name in names.items()}
    values["model"]["kind"] = moved.get(config.model.kind, config.model.kind)
    values["train"]["callbacks"] = [moved.get(reference, reference) for reference in config.train.callbacks]
    if config.parallel.ds_config is not None:
        values["parallel"]["ds_config"] = str(final / _DS_CONFIG)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _info(git: Checkout | None, num_files: int, size: int) -> dict[str, Any]:
    return {
        "git_sha": git.sha if git else None,
        "uncommitted": list(git.uncommitted) if git else [],
        "taken_from": str(_ROOT),
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": told_command(sys.argv),
        "working_directory": str(Path.cwd()),
        "files": num_files,
        "bytes": size,
    }
