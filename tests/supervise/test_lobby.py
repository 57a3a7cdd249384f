"""How ranks find rank 0 among ports that others may have: nobody, who is mute, who talks otherwise, another step."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from commands import ROOT

from mres.supervise import lobby
from mres.supervise.lobby import Lobby, NoPortError, RankZeroEndedError, find_store
from mres.testing import free_port

HERE = "127.0.0.1"


def announce(ports: list[int], meeting: str, store_port: int) -> int:
    """Rank 0 with its store; the port at which it says so."""
    lobby = Lobby(ports, meeting, 2)
    lobby.store_port = store_port
    return lobby.port


@pytest.fixture
def ports() -> list[int]:
    return [free_port() for _ in range(3)]


@pytest.fixture
def mute(ports: list[int]) -> Iterator[None]:
    """Somebody who accepts and never answers has the first port."""
    with socket.create_server((HERE, ports[0])):
        yield


def test_the_first_port_where_it_is_free(ports: list[int]) -> None:
    assert announce(ports, "7.0.0", 4711) == ports[0]
    assert find_store(HERE, ports, "7.0.0", 30) == 4711


@pytest.mark.parametrize("address", [HERE, "::1", "localhost"])
def test_at_every_address(ports: list[int], address: str) -> None:
    if address == "::1" and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    announce(ports, "7.0.0", 4711)
    assert find_store(address, ports, "7.0.0", 30) == 4711


def test_a_port_that_somebody_mute_has(ports: list[int], mute: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lobby, "_CALL_S", 0.2)
    assert announce(ports, "7.0.0", 4711) == ports[1]
    assert find_store(HERE, ports, "7.0.0", 30) == 4711


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"mres-store 7.0.0 x\n", b"\xff" * 5000, b""])
def test_a_port_where_another_language_is_spoken(ports: list[int], said: bytes) -> None:
    with socket.create_server((HERE, ports[0])) as foreign:

        def talk() -> None:
            connection, _ = foreign.accept()
            with connection:
                connection.sendall(said)

        threading.Thread(target=talk, daemon=True).start()
        announce(ports, "7.0.0", 4711)
        assert find_store(HERE, ports, "7.0.0", 30) == 4711


def test_other_steps_and_earlier_starts_are_passed_by(ports: list[int]) -> None:
    """Whoever comes first has the first port, and each rank finds its own."""
    meetings = {"7.0.0": 1001, "7.1.0": 1002, "7.1.1": 1003}
    found = [announce(ports, meeting, port) for meeting, port in meetings.items()]
    assert found == ports
    assert {meeting: find_store(HERE, ports, meeting, 30) for meeting in meetings} == meetings
    with pytest.raises(NoPortError):
        announce(ports, "7.2.0", 1004)


def test_rank_0_that_comes_late(ports: list[int]) -> None:
    late = threading.Timer(1.0, announce, (ports, "7.0.0", 4711))
    late.start()
    assert find_store(HERE, ports, "7.0.0", 30) == 4711


def test_a_port_that_comes_free(ports: list[int], mute: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was another's is asked again."""
    monkeypatch.setattr(lobby, "_AGAIN_S", 0.5)
    announce(ports[1:], "8.0.0", 1)
    found: list[int | None] = []
    seeker = threading.Thread(target=lambda: found.append(find_store(HERE, ports[1:], "7.0.0", 30)))
    seeker.start()
    announce(ports[2:], "7.0.0", 4711)
    seeker.join()
    assert found == [4711]


def test_nobody(ports: list[int], mute: None) -> None:
    started = time.monotonic()
    assert find_store(HERE, ports, "7.0.0", 0.3) is None
    assert find_store("no-such-host.invalid", ports, "7.0.0", 0.3) is None
    assert time.monotonic() - started < 60


def test_rank_0_that_is_there_gets_more_time(ports: list[int]) -> None:
    lobby = Lobby(ports, "7.0.0", 2)
    threading.Timer(1.0, lambda: setattr(lobby, "store_port", 4711)).start()
    assert find_store(HERE, ports, "7.0.0", 0.3) == 4711


def test_rank_0_that_ends_before_it_has_a_store(ports: list[int]) -> None:
    """As with a config that is wrong on all ranks: nobody waits for it any longer."""
    code = f"import time; from mres.supervise.lobby import Lobby; Lobby({ports}, '7.0.0', 2); print(flush=True); time.sleep(600)"
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE) as rank_0:
        assert rank_0.stdout is not None
        rank_0.stdout.readline()
        threading.Timer(1.0, rank_0.kill).start()
        with pytest.raises(RankZeroEndedError):
            find_store(HERE, ports, "7.0.0", 0.3)
