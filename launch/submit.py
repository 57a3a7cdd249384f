"""Submits training to a SLURM cluster, or runs it on this machine, through submitit."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mres.errors import exit_on_user_error
from mres.io.output import outlive_readers

if TYPE_CHECKING:
    from mres.cluster.job import TrainJob
    from mres.cluster.request import JobRequest
    from mres.config import Config


@exit_on_user_error
def main() -> int:
    outlive_readers()
    from mres.cluster.options import build_parser
    from mres.cluster.profiles import apply_profile, origin_lines
    from mres.cluster.request import make_request
    from mres.config import load_config

    parser = build_parser(__doc__)
    options = parser.parse_intermixed_args()
    origins = apply_profile(options, parser)
    config = load_config(options.config, options.overrides)
    request = make_request(options, config)
    folder = config.run_dir.absolute() / "submitit"
    argv = ("--config", str(options.config.absolute()), *options.overrides)
    if options.dry_run:
        _print_plan(request, config, folder, argv)
        for line in origin_lines(options, origins):
            print(f"# {line}")
        return 0
    from mres.cluster.job import TrainJob
    from mres.supervise.slurm_env import free_port

    port = free_port() if request.cluster == "local" else None
    return _run(TrainJob(request.cluster, argv, request.max_requeues, port), request, config, folder)


def _run(job: "TrainJob", request: "JobRequest", config: "Config", folder: Path) -> int:
    if request.cluster == "slurm":
        from mres.cluster import slurm

        submitted = slurm.submit(job, request, config.run.name, folder)
        _print_submitted(str(submitted.job_id), request, folder)
        return 0
    from mres.cluster import local

    if request.cluster == "debug":
        return local.run_debug(job, folder)
    print(f"{request.world_size} tasks on this machine; their logs: {folder}", file=sys.stderr, flush=True)
    return local.run_local(job, request, folder)


def _print_plan(request: "JobRequest", config: "Config", folder: Path, argv: tuple[str, ...]) -> None:
    if request.cluster == "slurm":
        from mres.cluster import slurm

        print(slurm.batch_text(request, config.run.name, folder), end="")
    train = Path(__file__).with_name("train.py")
    kind = "one a GPU" if request.gpus_per_node else "on CPUs"
    print(f"# world size {request.world_size} = {request.nodes} node(s) x {request.tasks_per_node} task(s), {kind}")
    print(f"# global batch: {config.data.images_per_batch} images x {config.data.expressions_per_image} expressions")
    print(f"# each task: {shlex.join([sys.executable, str(train), *argv])}")
    print(f"# logs: {folder / '%j_%t_log.out'}  (%j: job, %t: rank)")


def _print_submitted(job_id: str, request: "JobRequest", folder: Path) -> None:
    print(f"job {job_id}: {request.nodes} node(s) x {request.tasks_per_node} task(s), world size {request.world_size}")
    print(f"follow: tail -F {shlex.quote(str(folder / f'{job_id}_0_log.out'))}    (rank R: {job_id}_R_log.out)")
    print(f"state:  squeue -j {job_id}")
    print(f"cancel: scancel {job_id}")


if __name__ == "__main__":
    sys.exit(main())
