"""The ranks' first meeting: who is missing, double or of another world is named, at once and everywhere."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from commands import PATIENCE_S

from mres.errors import UserError
from mres.supervise import lobby
from mres.supervise import rendezvous as meeting
from mres.supervise.lobby import MEETING
from mres.supervise.meeting_point import connect
from mres.supervise.rendezvous import rendezvous, tell_refusal
from mres.supervise.slurm_env import MASTER_PORTS, step_ports
from mres.testing import free_port


@pytest.fixture(autouse=True)
def address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setattr(meeting, "_STAY_S", 1.0)


@pytest.fixture(params=["MASTER_PORT", "step"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As a launcher says where to meet, and as it follows from a SLURM step, whose first port somebody else has."""
    monkeypatch.setattr(lobby, "_CALL_S", 0.5)
    if request.param == "MASTER_PORT":
        yield
        return
    job = free_port() - MASTER_PORTS[0]
    monkeypatch.setenv(MEETING, f"{job}.0.0")
    monkeypatch.setenv("MASTER_PORT", str(step_ports(job, 0)[0]))
    with socket.create_server(("127.0.0.1", step_ports(job, 0)[0])):
        yield


def met(*ranks_and_sizes: tuple[int, int], timeout_s: float = 30, devices: str = "") -> list[str]:
    """What came of it for each, in threads: the stores and their connections are those of processes."""
    held = []  # rank 0's serves the others: a process keeps it as long as its group

    def one(rank_and_size: tuple[int, int]) -> str:
        rank, size = rank_and_size
        try:
            store = rendezvous(rank, size, timeout_s, devices.split()[rank] if devices else "cpu")
        except UserError as error:
            return str(error)
        held.append(store)
        store.set(f"there/{rank}", "x")
        store.wait([f"there/{r}" for r in range(size)])  # what the process group does first
        return "met"

    with ThreadPoolExecutor(len(ranks_and_sizes)) as pool:
        return list(pool.map(one, ranks_and_sizes))


def test_all_meet(way: None) -> None:
    assert met((0, 3), (1, 3), (2, 3)) == ["met"] * 3


def test_another_world_size_is_named_on_all_ranks() -> None:
    texts = met((0, 3), (1, 2), (2, 3))
    assert set(texts) == {"the ranks have different WORLD_SIZE: rank 1 has 2, rank 0 has 3; start all with the same"}


def test_a_rank_without_a_gpu_is_named() -> None:
    """As on a node whose driver is gone: gloo there and NCCL elsewhere would wait for each other."""
    (text,) = set(met((0, 3), (1, 3), (2, 3), devices="cuda cuda cpu"))
    assert f"rank 2 on {socket.gethostname()} computes on cpu, rank 0 on cuda" in text


def test_two_of_one_rank_are_named() -> None:
    assert all("two processes have RANK=1" in text for text in met((0, 3), (1, 3), (1, 3)))


def test_who_does_not_come_is_named_by_those_that_did() -> None:
    texts = met((0, 4), (2, 4), timeout_s=1)
    assert all(text.startswith("rank(s) 1, 3 of 4 did not come within parallel.timeout_s=1 s; ") for text in texts)


def test_a_port_that_is_taken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        with pytest.raises(UserError, match="rank 0 cannot listen at MASTER_ADDR:MASTER_PORT"):
            rendezvous(0, 2, 1)


def test_nobody_at_the_address() -> None:
    with pytest.raises(UserError, match="rank 1 found nobody at MASTER_ADDR:MASTER_PORT"):
        rendezvous(1, 2, 1)


@pytest.mark.parametrize("port", ["http", "70000", "-1"])
def test_what_is_no_port(monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    monkeypatch.setenv("MASTER_PORT", port)
    with pytest.raises(UserError, match="is not a port"):
        rendezvous(0, 2, 1)


def teller(rank: int, size: int, hear_s: float, message: str = "no such file") -> "subprocess.Popen[str]":
    """A rank that cannot come to the meeting; it prints whether somebody else says why."""
    code = f"from mres.supervise import rendezvous; rendezvous._HEAR_S = {hear_s}; print(rendezvous.tell_refusal({message!r}))"
    environ = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(size)}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_what_keeps_a_rank_away_is_known_on_all_that_came(way: None) -> None:
    process = teller(1, 3, hear_s=60)
    assert met((0, 3), (2, 3), timeout_s=600) == [f"rank 1 on {socket.gethostname()}: no such file"] * 2
    assert process.communicate(timeout=PATIENCE_S)[0] == "True\n"


def test_the_trouble_of_all_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "_MORE_S", PATIENCE_S)
    others = [teller(rank, 5, hear_s=60, message="full" if rank == 3 else "no such file") for rank in (1, 2, 3)]
    here = socket.gethostname()
    assert met((0, 5), (4, 5), timeout_s=600) == [f"ranks 1-2 on {here}: no such file\nrank 3 on {here}: full"] * 2
    assert [process.communicate(timeout=PATIENCE_S)[0] for process in others] == ["True\n"] * 3


def test_who_is_not_heard_must_speak() -> None:
    """As under torchrun, whose store is there before rank 0."""
    port = int(os.environ["MASTER_PORT"])
    store = connect(port, 60, is_master=True)
    assert teller(1, 2, hear_s=0.5).communicate(timeout=PATIENCE_S)[0] == "False\n"
    assert json.loads(store.get("away/1")) == [socket.gethostname(), "no such file"]


@pytest.mark.parametrize(
    ("rank", "size", "is_known"),
    [("0", "2", True), ("1", "2", False), ("0", "1", True), ("2", "2", True), ("first", "2", True), ("1", "", True)],
)
def test_where_nobody_is_to_be_told_only_who_is_silent_must_speak(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], way: None, rank: str, size: str, is_known: bool
) -> None:
    monkeypatch.setattr(meeting, "_came", False)
    monkeypatch.setattr(meeting, "_SEEK_S", 0.3)
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    assert tell_refusal("no such file") is is_known
    assert capfd.readouterr() == ("", "")
