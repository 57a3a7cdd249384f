"""A rank that dies or fails: the others end within seconds and say which, whatever they were waiting in."""

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from commands import wait_until
from tiny_run import ROOT, TRAIN, Done, Raise, start, wait, write_config

from mres.errors import UserError
from mres.parallel.config import ParallelConfig
from mres.parallel.factory import build_strategy
from mres.supervise import hang, peer_server
from mres.supervise.heartbeat import FAILED, LOST, PHASES, Heartbeat, read_beats
from mres.supervise.peer_monitor import LOST_RANK_EXIT, is_of_communication
from mres.supervise.peer_server import PeerServer
from mres.supervise.supervised import supervised
from mres.supervise.world import World
from mres.testing import free_port

HANGING = ROOT / "tests" / "helpers" / "hanging_train.py"

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


def wait_for_step(run_dir: Path, step: int) -> None:
    def reached() -> bool:
        beats = read_beats(run_dir).values()
        return bool(beats) and min(beat.step for beat in beats) >= step

    wait_until(reached, f"step {step}")


def wait_for_problem(run_dir: Path, what: str) -> str:
    """Until the doctor finds that and no more; a busy machine may make it find others before."""

    def problem() -> str:
        found = hang.diagnose(run_dir)
        return found[0].found if [(f.level, f.what) for f in found] == [("problem", what)] else ""

    return wait_until(problem, what)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "victim", "workers", "by"),
    [
        ("ddp", 1, 1, signal.SIGKILL),
        pytest.param("fsdp", 0, 0, signal.SIGKILL, marks=pytest.mark.exhaustive),
    ],
)
def test_a_killed_rank_ends_the_others_and_is_named(
    tmp_path: Path, tiny_shards: Path, strategy: str, victim: int, workers: int, by: signal.Signals
) -> None:
    config = write_config(tmp_path, tiny_shards)
    arguments = ["--config", str(config), f"parallel.strategy={strategy}", f"data.workers={workers}"]
    endless = ["data.images_per_batch=6", "train.steps=1000000", "train.trace_batches=false"]
    processes = start(TRAIN, [*arguments, *endless], tmp_path, world_size=3)
    run_dir = tmp_path / "runs" / "run"
    try:
        wait_for_step(run_dir, 3)
    finally:
        os.kill(processes[victim].pid, by)
    done = wait(processes, tmp_path)
    assert_named(done, victim, run_dir)
    assert done.codes[victim] == -by


def assert_named(done: Done, victim: int, run_dir: Path) -> None:
    """All ranks but the victim ended and said once that it died."""
    beats = read_beats(run_dir)
    assert beats[victim].phase in PHASES
    for rank in (rank for rank in range(len(done.codes)) if rank != victim):
        assert done.codes[rank] == LOST_RANK_EXIT, done.outputs[rank]
        assert done.outputs[rank].count(f"error: rank {victim} ") == 1
        assert "died: its process is gone without a word" in done.outputs[rank]
        assert "Traceback" not in done.outputs[rank]
        assert beats[rank].phase == LOST
        assert f"rank {victim} " in beats[rank].note


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "victim", "phase"),
    [
        pytest.param(
            ["parallel.strategy=zero", "parallel.zero_stage=3"], 1, "checkpoint", marks=pytest.mark.exhaustive
        ),
        (["parallel.strategy=zero", "parallel.zero_stage=3"], 0, "backward"),
        (["parallel.strategy=fsdp"], 1, "evaluate"),
        pytest.param(["parallel.strategy=fsdp"], 0, "checkpoint", marks=pytest.mark.exhaustive),
    ],
)
def test_wherever_a_rank_is_killed(
    tmp_path: Path, tiny_shards: Path, strategy: list[str], victim: int, phase: str
) -> None:
    """The others wait in collectives of the checkpoint, the evaluation or the backend, not in the loop's."""
    config = write_config(tmp_path, tiny_shards)
    arguments = ["--config", str(config), *strategy, "checkpoint.every=4", "evaluate.every=4"]
    killing = Raise(4, signal.SIGKILL, victim, phase)
    done = wait(start(TRAIN, arguments, tmp_path, world_size=2, raising=killing), tmp_path)
    assert done.codes[victim] == -signal.SIGKILL
    assert_named(done, victim, tmp_path / "runs" / "run")


@pytest.mark.slow
def test_a_rank_that_hangs_is_named_when_its_collective_times_out(tmp_path: Path, tiny_shards: Path) -> None:
    config = write_config(tmp_path, tiny_shards)
    endless = ["train.steps=1000000", "train.trace_batches=false", "parallel.timeout_s=10", "parallel.strategy=ddp"]
    processes = start(TRAIN, ["--config", str(config), *endless], tmp_path, world_size=2)
    try:
        wait_for_step(tmp_path / "runs" / "run", 3)
        os.kill(processes[1].pid, signal.SIGSTOP)
        done = wait(processes[:1], tmp_path)
    finally:
        processes[1].kill()
    assert done.codes == [LOST_RANK_EXIT], done.output
    assert "error: rank 1 (" in done.output
    assert "hangs: the others waited for it; step " in done.output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "where", "batch", "place"),
    [
        (["parallel.strategy=fsdp"], "forward", 3, "step 3, forward"),
        # The others are in the next micro-batch: in the same step, and in an earlier phase than the rank they wait for.
        (["parallel.strategy=ddp", "train.accumulate=2"], "backward", 5, "step 3, backward"),
    ],
)
@pytest.mark.exhaustive
def test_a_rank_that_hangs_between_the_loops_collectives_is_named(
    tmp_path: Path,
    tiny_shards: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    where: str,
    batch: int,
    place: str,
) -> None:
    """By the doctor while it hangs, and by the others when their collective in forward or backward times out."""
    monkeypatch.setattr(hang, "_HANGS_S", 3.0)
    monkeypatch.setattr(hang, "_HANGS_STEPS", 0)  # on a busy machine ten of them take longer than the time-out
    config, run_dir = write_config(tmp_path, tiny_shards), tmp_path / "runs" / "run"
    hanging = [where, "0", str(batch), "--config", str(config), *arguments]
    endless = ["train.steps=1000000", "train.trace_batches=false", "parallel.timeout_s=15"]
    processes = start(HANGING, [*hanging, *endless], tmp_path, world_size=2)
    try:
        wait_for_step(run_dir, 3)
        found = wait_for_problem(run_dir, "rank 0")
        assert found.startswith(f"the others wait for it: {place}, for ")
        assert ("it has begun " in found) is (where == "forward"), found
        done = wait(processes[1:], tmp_path)
    finally:
        processes[0].kill()
    said = (tmp_path / "out-1.txt").read_text()
    assert done.codes == [LOST_RANK_EXIT], said
    assert "error: rank 0 (" in said
    assert f"hangs: the others waited for it; {place}, for " in said
    assert "Traceback" not in said


def of_three(rank: int, port: int, folder: Path) -> None:
    """Rank 1 fails by itself; rank 0 is in no collective and hears of nothing; rank 2 waits in one."""
    os.environ.update(RANK=str(rank), WORLD_SIZE="3", LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="3")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.dup2(os.open(folder / f"out-{rank}.txt", os.O_WRONLY | os.O_CREAT), 2)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8")

    def work(world: World, heartbeat: Heartbeat) -> int:
        strategy = build_strategy(ParallelConfig(strategy="ddp"), world)
        strategy.all_reduce_sum([1.0])
        if rank == 1:
            raise ValueError("no such thing")
        if rank == 0:
            time.sleep(600)
        return int(strategy.all_reduce_sum([1.0])[0])

    sys.exit(supervised(folder / "run", 600, work))


@pytest.mark.slow
def test_a_rank_that_fails_alone_ends_the_others_wherever_they_are(tmp_path: Path) -> None:
    context, port = multiprocessing.get_context("forkserver"), free_port()
    processes = [context.Process(target=of_three, args=(rank, port, tmp_path)) for rank in range(3)]
    for process in processes:
        process.start()
    done = wait(processes, tmp_path)
    assert done.codes == [LOST_RANK_EXIT, 1, LOST_RANK_EXIT], done.outputs
    assert "ValueError: no such thing" in done.outputs[1]
    assert "Traceback" in done.outputs[1], "whose fault it is has its traceback"
    for rank in (0, 2):
        assert "error: rank 1 (" in done.outputs[rank]
        assert "failed: ValueError: no such thing; all others end with it" in done.outputs[rank]
        assert "Traceback" not in done.outputs[rank]
    beats = read_beats(tmp_path / "run")
    assert [beats[rank].phase for rank in range(3)] == [LOST, FAILED, LOST]


class Line:
    """A connection to the server, as a rank has one."""

    def __init__(self, server: PeerServer) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        self.file = self.socket.makefile("rb")

    def say(self, **message: object) -> "Line":
        peer_server.send(self.socket, message)
        return self

    def hears(self) -> dict:
        text = self.file.readline()
        return json.loads(text) if text else {}

    def hang_up(self) -> None:
        self.file.close()
        self.socket.close()


@pytest.fixture
def server():
    server = PeerServer(4, loopback=True)
    yield server
    server.close()


def rank(server: PeerServer, number: int) -> Line:
    return Line(server).say(token=server.token, rank=number, host="a", pid=100 + number)


def test_who_hangs_up_without_a_word_is_lost(server: PeerServer) -> None:
    lines = [rank(server, number) for number in range(3)]
    lines[1].hang_up()
    lost = {"lost": 1, "why": f"(a, pid 101) {peer_server.GONE}"}
    assert lines[0].hears() == lost
    assert lines[2].hears() == lost
    lines[2].hang_up()  # what follows from the first loss is no news
    assert rank(server, 3).hears() == lost, "who comes later learns of it too"


def test_who_fails_or_blames_another_is_passed_on_in_its_words(server: PeerServer) -> None:
    lines = [rank(server, number) for number in range(2)]
    lines[1].say(lost=1, why="failed: OutOfMemoryError: CUDA out of memory")
    assert lines[0].hears() == {"lost": 1, "why": "failed: OutOfMemoryError: CUDA out of memory"}


def test_who_said_good_bye_is_not_lost(server: PeerServer) -> None:
    lines = [rank(server, number) for number in range(3)]
    lines[1].say(bye=True).hang_up()
    lines[2].hang_up()
    assert lines[0].hears()["lost"] == 2


def test_a_server_that_closes_says_so() -> None:
    server = PeerServer(2, loopback=True)
    line = rank(server, 1)
    stranger = Line(server)
    line.say(bye=True).socket.shutdown(socket.SHUT_WR)
    stranger.hang_up()
    server.close()
    assert line.hears() in ({"closing": True}, {})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"[]\n",
        b"7\n",
        b'{"token": "guessed", "rank": 1}\n',
        b'{"lost": 0, "why": "x"}\n',
        b"x" * 40_000,
    ],
)
def test_strangers_are_not_listened_to(server: PeerServer, content: bytes) -> None:
    lines = [rank(server, 0), rank(server, 1)]
    stranger = Line(server)
    stranger.socket.sendall(content)
    stranger.hang_up()
    lines[1].hang_up()
    assert lines[0].hears()["lost"] == 1


def test_a_forked_child_does_not_keep_a_dead_ranks_connection(server: PeerServer) -> None:
    line = rank(server, 0)
    other = peer_server.close_after_fork(socket.create_connection(("127.0.0.1", server.port)))
    peer_server.send(other, {"token": server.token, "rank": 1, "host": "a", "pid": 1})
    child = os.fork()
    if child == 0:  # a data worker, which lives on
        time.sleep(30)
        os._exit(0)
    try:
        other.close()
        assert line.hears()["lost"] == 1
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:3721"), True),
        (RuntimeError("NCCL communicator was aborted on rank 1."), True),
        (RuntimeError("Timed out waiting 600000ms for recv operation to complete"), True),
        (dist.DistNetworkError("x"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (UserError("Connection closed"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_errors_that_may_be_another_ranks_fault(error: BaseException, expected: bool) -> None:
    assert is_of_communication(error) is expected
