"""From a sweep to one job array, of those of its members that have something left to do."""

import argparse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from mres.cluster import submission
from mres.cluster.login_node import check_on_login_node
from mres.cluster.request import JobRequest, make_request
from mres.cluster.script import Array, Task
from mres.cluster.snapshot import program_of_job
from mres.cluster.status import look
from mres.cluster.sweep import Member, Sweep, make_sweep
from mres.errors import UserError


def run(options: argparse.Namespace, launch: Path) -> int:
    """Plans, writes or submits the sweep that the command line asks for.

    Members that are done, queued or running are left out; the others go on from their newest checkpoints.

    Args:
        launch: the folder of the scripts that start training.

    Raises:
        UserError: a member that cannot run, or what `submission` refuses.
    """
    sweep = make_sweep(options.config, options.overrides, options.sweep)
    request = _request(options, sweep)
    left = _left(sweep)
    if not left:
        return 0
    for member in left:
        with _of_member(member):
            check_on_login_node(options, request, member.config)
    tasks: list[Task] = []
    for member in left:
        first = tasks[0].program if tasks else None
        program = program_of_job(options, member.config, member.words, launch, like=first)
        tasks.append(Task(member.number, member.folder, program))
    array = Array(tuple(tasks), options.array_parallelism)
    if options.dry_run:
        return submission.print_plan(request, sweep.config, tasks[0].program, array)
    sweep.keep_numbers()
    if options.script:
        return submission.write_script(request, sweep.config, tasks[0].program, options.script, array)
    return submission.submit(request, sweep.config, tasks[0].program, array)


def _request(options: argparse.Namespace, sweep: Sweep) -> JobRequest:
    """What each member asks for; an array has one answer for all.

    Raises:
        UserError: naming the member that cannot run so, or needs something else than the first one.
    """
    requests = []
    for member in sweep.members:
        with _of_member(member):
            requests.append(make_request(options, member.config))
        if requests[-1].cpus_per_task != requests[0].cpus_per_task:
            raise UserError(
                f"--sweep: {sweep.members[0].name} needs {requests[0].cpus_per_task} CPUs a task and {member.name} "
                f"{requests[-1].cpus_per_task} (data.workers and two more); give --cpus-per-task"
            )
    delay = max(request.signal_delay_s for request in requests)  # that of the member whose saving took longest
    return replace(make_request(options, sweep.config), signal_delay_s=delay)


@contextmanager
def _of_member(member: Member) -> Iterator[None]:
    """A refusal tells of which one it is."""
    try:
        yield
    except UserError as error:
        raise UserError(f"--sweep, member {member.name}: {error}") from None


def _left(sweep: Sweep) -> list[Member]:
    """Those that are neither done nor in the queue; says how many are. With more steps than it had, none is done."""
    left, states = [], Counter[str]()
    for member, its in zip(sweep.members, look([member.folder for member in sweep.members]), strict=True):
        has_more_steps = its.progress.step < (member.config.train.steps or 0)
        if its.is_live or (its.is_done and not has_more_steps):
            states[its.state] += 1
        else:
            left.append(member)
    if states:
        counts = ", ".join(f"{number} {state}" for state, number in states.items())
        print(f"{sum(states.values())} of {len(sweep.members)} members are left out: {counts}")
    return left
