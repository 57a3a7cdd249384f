"""From a sweep to one job array, of those of its members that have something left to do."""

import argparse
from collections import Counter
from collections.abc import Callable, Sequence

from mres.cluster import slurm, submission
from mres.cluster.request import JobRequest, make_request
from mres.cluster.script import Array, Program, Task
from mres.cluster.status import look
from mres.cluster.sweep import Member, Sweep, make_sweep
from mres.config import Config
from mres.errors import UserError


def run(options: argparse.Namespace, program_of: Callable[[Config, Sequence[str]], Program]) -> int:
    """Plans, writes or submits the sweep that the command line asks for.

    Members that are done, queued or running are left out; the others go on from their newest checkpoints.

    Args:
        program_of: what runs a config that the given overrides make.

    Raises:
        UserError: a member that cannot run, or what `submission` refuses.
    """
    sweep = make_sweep(options.config, options.overrides, options.sweep)
    request = _request(options, sweep)
    left = _left(sweep)
    if not left:
        return 0
    tasks = [Task(member.number, member.folder, program_of(member.config, member.words)) for member in left]
    array = Array(tuple(tasks), options.array_parallelism)
    if options.dry_run:
        return submission.print_plan(request, sweep.config, tasks[0].program, array)
    if options.script:
        sweep.keep_numbers()
        return submission.write_script(request, sweep.config, tasks[0].program, options.script, array)
    slurm.check_commands()
    sweep.keep_numbers()
    return submission.submit(request, sweep.config, tasks[0].program, array)


def _request(options: argparse.Namespace, sweep: Sweep) -> JobRequest:
    """What each member asks for; an array has one answer for all.

    Raises:
        UserError: naming the member that cannot run so, or needs something else than the first one.
    """
    first: JobRequest | None = None
    for member in sweep.members:
        try:
            request = make_request(options, member.config)
        except UserError as error:
            raise UserError(f"--sweep, member {member.name}: {error}") from None
        first = first or request
        if request.cpus_per_task != first.cpus_per_task:
            raise UserError(
                f"--sweep: {sweep.members[0].name} needs {first.cpus_per_task} CPUs a task and {member.name} "
                f"{request.cpus_per_task} (data.workers and two more); give --cpus-per-task"
            )
    return make_request(options, sweep.config)


def _left(sweep: Sweep) -> list[Member]:
    """Those that are neither done nor in the queue; says which are."""
    found = look([member.folder for member in sweep.members])
    states = Counter(status.state for status in found if status.is_done or status.is_live)
    if states:
        counts = ", ".join(f"{number} {state}" for state, number in states.items())
        print(f"{sum(states.values())} of {len(found)} members are left out: {counts}")
    return [member for member, its in zip(sweep.members, found, strict=True) if not (its.is_done or its.is_live)]
