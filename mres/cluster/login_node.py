"""What the login node refuses: a job that would wait for hours and then end for a reason that is known now."""

import argparse
import sys
from pathlib import Path

from mres.cluster import jobs, slurm
from mres.cluster.container import Container
from mres.cluster.refusals import check_partition
from mres.cluster.request import JobRequest
from mres.cluster.status import live_jobs
from mres.cluster.sweep import is_sweep
from mres.config import Config
from mres.doctor.disk import check_run_dir
from mres.errors import UserError
from mres.run_folder import LOCK_NAME, held
from mres.shards.storage import is_remote
from mres.train.checks import check_settings, open_sets

WEIGHTS = ("init_from", "text_weights", "image_weights")


def check_on_login_node(options: argparse.Namespace, request: JobRequest, config: Config) -> None:
    """Refuses what `launch/train.py` would refuse before torch loads, a folder that cannot take the run, and one in use.

    Raises:
        UserError: naming the key or the option, and the remedy.
    """
    submits = not (options.dry_run or options.script)
    if submits:
        slurm.check_commands()
        check_partition(request)
    check_settings(config, request.world_size, request.tasks_per_node)
    if not options.no_check_data and _data_lie_here(request.container, config):
        try:
            open_sets(config, request.world_size, request.tasks_per_node)
        except UserError as error:
            raise UserError(
                f"{error} (data and weights that only the nodes see are not looked at with --no-check-data)"
            ) from None
    if is_sweep(config.run_dir):
        raise UserError(
            f"run.name: '{config.run_dir}' is the folder of a sweep; give this run another name (run.name=…)"
        )
    _check_folder(config)
    _check_not_in_use(config.run_dir, must_know=submits)


def _data_lie_here(container: Container | None, config: Config) -> bool:
    """Whether the paths of data and weights mean here what they mean in the container.

    Raises:
        UserError: one of them is in no folder that is mounted, or its mount has nothing at that place.
    """
    if container is None:
        return True
    if container.image.startswith("/") and not Path(container.image).exists():
        raise UserError(f"--container-image {container.image} is not there (--no-check-data: only nodes see it)")
    keys = {f"data.train={chosen.path}": chosen.path for chosen in config.data.train_sets}
    named = {"data.val": config.data.val, **{f"checkpoint.{key}": getattr(config.checkpoint, key) for key in WEIGHTS}}
    keys |= {f"{key}={place}": str(place) for key, place in named.items() if place is not None}
    same = True
    for key, place in keys.items():
        if is_remote(place):
            continue
        inside = Path.cwd() / place
        outside = container.outside(inside)
        if outside is None:
            raise UserError(
                f"{key} is in no folder that the container sees; --container-mounts, or --no-check-data if its image has it"
            )
        if outside != inside and not outside.exists():
            raise UserError(
                f"{key} is '{outside}' outside of the container, which is not there (--no-check-data: only nodes see it)"
            )
        same &= outside == inside
    return same


def _check_folder(config: Config) -> None:
    for finding in check_run_dir(config.run_dir, None):
        if finding.level == "problem":
            raise UserError(f"run.dir='{config.run.dir}': {finding.what}: {finding.found}; {finding.remedy}")
        if finding.level == "warning":
            print(f"warning: {finding.what}: {finding.found}; {finding.remedy}", file=sys.stderr)


def _check_not_in_use(run_dir: Path, *, must_know: bool) -> None:
    """Two jobs of one run would write into one folder, and the second one's snapshot would become the first one's.

    Args:
        must_know: also where SLURM does not answer, which a dry run does not need.
    """
    live = []
    try:
        live = _live_jobs(run_dir)
    except slurm.SlurmError as error:
        if must_know:
            raise UserError(f"SLURM does not say which jobs are live: {error}") from None
    if live:
        raise UserError(
            f"run.name: job {' and '.join(live)} of the run '{run_dir}' waits or runs; cancel it (launch/submit.py cancel), "
            "wait for it, or give this run another name (run.name=…)"
        )
    if (run_dir / LOCK_NAME).exists():
        with held(run_dir):  # started by hand
            pass


def _live_jobs(run_dir: Path) -> list[str]:
    """Raises: SlurmError: SLURM does not answer."""
    return live_jobs(run_dir, {event.job for event in jobs.read(run_dir)}, slurm.outputs_of_jobs())
