"""How often failed training is started again, and where: by what is known, without a SLURM."""

from dataclasses import replace
from pathlib import Path

from mres.cluster import jobs, nodes
from mres.cluster.decide import Facts, decide
from mres.cluster.jobs import Event
from mres.cluster.restarts import MAX_IDLE_REQUEUES, Failure

NOW = 1_000_000.0
KILLED = Failure("rank 1 on n1: Killed", reached=20)
FAILED = Facts(exit_code=137, now=NOW, state="RUNNING", step=15, max_restarts=2, failure=KILLED)
LOST = replace(FAILED, failure=Failure("lost node(s) n1", 20, lost_nodes=("n1",), failed_nodes=("n1",)))


def again(step: int, reached: int | None, **more) -> Event:
    return Event("7", "restarted", step=step, reached=reached, reason="rank 1 on n1: Killed", **more)


def test_failed_training_is_started_again_on_its_nodes() -> None:
    decision = decide(FAILED)
    assert (decision.action, decision.event, decision.exclude) == ("restart", "restarted", ())
    assert decision.reason == KILLED.reason


def test_any_number_of_times_with_steps_gained() -> None:
    past = tuple(again(step, step + 4) for step in range(1, 15))
    assert decide(replace(FAILED, past=past)).action == "restart"


def test_no_more_without() -> None:
    past = (again(10, 14), again(15, 18), again(15, 17))
    stopped = decide(replace(FAILED, past=past))
    assert (stopped.action, stopped.event, stopped.exit_code) == ("end", "failed", 137)
    assert "--max-restarts 2" in stopped.reason
    assert decide(replace(FAILED, past=past[:2])).action == "restart"
    assert decide(replace(FAILED, max_restarts=0)).action == "end"


def test_the_same_step_twice_ends_it_with_the_reason() -> None:
    stopped = decide(replace(FAILED, past=(again(15, 20),)))
    assert stopped.action == "end"
    assert "step 20" in stopped.reason
    assert KILLED.reason in stopped.reason
    # A preemption in between does not hide it; the loss of a machine is nothing that training did.
    assert decide(replace(FAILED, past=(again(15, 20), again(15, None)))).action == "end"
    assert decide(replace(FAILED, past=(again(15, 20, lost_nodes=("n1",)),))).action == "restart"
    assert decide(replace(LOST, past=(again(15, 20),))).action == "requeue"


def test_lost_node_has_the_job_queued_again_where_it_may() -> None:
    assert (decide(LOST).action, decide(LOST).exclude) == ("requeue", ())
    assert decide(replace(LOST, avoid=("n1",))).exclude == ("n1",)
    assert decide(replace(LOST, max_requeues=0)).action == "end"


def test_node_that_failed_twice_is_left_even_at_the_same_step() -> None:
    broken = Failure("rank 1 on n1 failed: CUDA error: uncorrectable ECC error", 20, failed_nodes=("n1",))
    decision = decide(replace(FAILED, failure=broken, past=(again(15, 20),), avoid=("n1",)))
    assert (decision.action, decision.exclude) == ("requeue", ("n1",))


def test_preempted_before_every_step_is_not_requeued_for_ever() -> None:
    stopped = Facts(exit_code=75, now=NOW, state="RUNNING", preempted_at=NOW, step=15)
    past = tuple(again(15, None) for _ in range(MAX_IDLE_REQUEUES))
    assert decide(replace(stopped, past=past[1:])).action == "requeue"
    assert decide(replace(stopped, past=past)).action == "end"
    assert decide(replace(stopped, past=past, step=16)).action == "requeue"


def test_nodes_that_failed_twice_are_listed_until_somebody_takes_them_off(tmp_path: Path) -> None:
    def fail(*names: str) -> tuple[str, ...]:
        new = nodes.exclude(tmp_path, names, "lost\nnode")
        jobs.note(tmp_path, Event("7", "requeued", failed_nodes=names))
        return new

    assert (fail("n1"), nodes.excluded(tmp_path)) == ((), ())
    assert (fail("n2", "n1"), nodes.excluded(tmp_path)) == (("n1",), ("n1",))
    assert (fail("n1"), nodes.excluded(tmp_path)) == ((), ("n1",))
    assert (fail("n2"), nodes.excluded(tmp_path)) == (("n2",), ("n1", "n2"))
    listed = tmp_path / nodes.EXCLUDED
    listed.write_text("".join(line for line in listed.read_text().splitlines(True) if not line.startswith("n1")))
    assert nodes.excluded(tmp_path) == ("n2",)
