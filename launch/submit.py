"""Submits training to a SLURM cluster, or runs it on this machine."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mres.errors import exit_on_user_error
from mres.io.output import outlive_readers

if TYPE_CHECKING:
    from mres.cluster.request import JobRequest
    from mres.config import Config

_LAUNCH = Path(__file__).absolute().parent


@exit_on_user_error
def main() -> int:
    outlive_readers()
    from mres.cluster import commands
    from mres.cluster.options import build_parser
    from mres.cluster.profiles import apply_profile, origin_lines
    from mres.cluster.request import make_request
    from mres.config import load_config

    if commands.is_command(sys.argv[1:]):
        return commands.main(sys.argv[1:])
    parser = build_parser(__doc__)
    options = parser.parse_intermixed_args()
    origins = apply_profile(options, parser)
    request = None
    if options.sweep:
        code = _sweep(options)
    else:
        config = load_config(options.config, options.overrides)
        request = make_request(options, config)
        run = _on_slurm if request.cluster == "slurm" else _on_this_machine
        code = run(options, request, config)
    if options.dry_run:
        for line in origin_lines(options, origins, request):
            print(f"# {line}", file=sys.stderr)
    return code


def _on_slurm(options: argparse.Namespace, request: "JobRequest", config: "Config") -> int:
    from mres.cluster import submission
    from mres.cluster.login_node import check_on_login_node
    from mres.cluster.snapshot import program_of_job

    check_on_login_node(options, request, config)
    program = program_of_job(options, config, options.overrides, _LAUNCH)
    if options.dry_run:
        return submission.print_plan(request, config, program)
    if options.script:
        return submission.write_script(request, config, program, options.script)
    return submission.submit(request, config, program)


def _sweep(options: argparse.Namespace) -> int:
    from mres.cluster import sweep_job

    return sweep_job.run(options, _LAUNCH)


def _on_this_machine(options: argparse.Namespace, request: "JobRequest", config: "Config") -> int:
    folder = config.run_dir.absolute() / "submitit"
    what = f"{request.world_size} task(s) on this machine; their logs: {folder}"
    if options.dry_run:
        print(f"# {what}")
        return 0
    from mres.cluster import local
    from mres.cluster.job import TrainJob
    from mres.supervise.slurm_env import free_port

    port = free_port() if request.cluster == "local" else None
    argv = ("--config", str(options.config.absolute()), *options.overrides)
    job = TrainJob(request.cluster, argv, request.max_requeues, port)
    if request.cluster == "debug":
        return local.run_debug(job, folder)
    print(what, file=sys.stderr, flush=True)
    return local.run_local(job, request, folder)


if __name__ == "__main__":
    sys.exit(main())
