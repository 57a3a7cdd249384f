"""The interface that leads to rank 0 is what gloo and NCCL get; what a user has chosen stays."""

import os
import socket

import psutil
import pytest

from mres.errors import UserError
from mres.supervise import network
from mres.supervise.network import GLOO, NCCL, check_chosen_interface, choose_interface
from mres.testing import run_distributed


def outside() -> tuple[str, str] | None:
    """An interface of this machine that is not the loopback one, and its first address."""
    for name, entries in psutil.net_if_addrs().items():
        first = next((e.address for e in entries if e.family == socket.AF_INET), "127.")
        if not first.startswith("127."):
            return name, first
    return None


def joined(
    master: str | None = None, environ: dict[str, str] | None = None
) -> tuple[str, str | None, str | None, float]:
    import torch
    import torch.distributed as dist

    from mres.supervise.world import join_world

    os.environ.update(environ or {})
    if master is not None:
        os.environ["MASTER_ADDR"] = master
    world = join_world(60)
    number = torch.ones(1)
    dist.all_reduce(number)
    return world.network, os.environ.get(GLOO), os.environ.get(NCCL), number.item()


def test_one_machine_talks_over_loopback() -> None:
    told = "network: lo (127.0.0.1), one machine"
    assert run_distributed(joined, 2) == [(told, "lo", None, 2.0), ("", "lo", None, 2.0)]


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_ipv6() -> None:
    told = "network: lo (::1), one machine"
    assert run_distributed(joined, 2, "::1") == [(told, "lo", None, 2.0), ("", "lo", None, 2.0)]


@pytest.mark.skipif(outside() is None, reason="this machine has no interface but lo")
def test_the_interface_that_leads_to_rank_0() -> None:
    name, address = outside() or ("", "")
    first, second = run_distributed(joined, 2, address)
    assert first == (f"network: {name} ({address}), one machine", name, f"={name}", 2.0)
    assert second == ("", name, f"={name}", 2.0)


def test_what_the_user_has_chosen_stays() -> None:
    first, _ = run_distributed(joined, 2, None, {GLOO: "lo", NCCL: "ib0"})
    assert first == (f"network: lo ({GLOO}), one machine", "lo", "ib0", 2.0)


def test_an_interface_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GLOO, "lo,nosuch0")
    with pytest.raises(UserError, match=r"GLOO_SOCKET_IFNAME='lo,nosuch0' names no interface of .*\blo\b"):
        check_chosen_interface()
    monkeypatch.setenv(GLOO, "lo")
    check_chosen_interface()


def seen_by_others(master: str) -> str | None:
    """Rank 0 knows its own name as a loopback address (Debian's 127.0.1.1); the other one comes from elsewhere."""
    from mres.supervise.rendezvous import rendezvous

    rank = int(os.environ["RANK"])
    if rank == 1:
        network._way_to_master = lambda: network.Way("192.0.2.7", master)  # an address of no machine
    choose_interface(rendezvous(rank, 2, 60), rank, 2)
    return os.environ.get(GLOO)


@pytest.mark.skipif(outside() is None, reason="this machine has no interface but lo")
def test_a_name_that_is_a_loopback_address_on_its_own_machine() -> None:
    name, address = outside() or ("", "")
    assert run_distributed(seen_by_others, 2, address) == [name, None]


def test_addresses_behind_others_are_left_to_gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where hosts are routers, their address lies on `lo` behind 127.0.0.1, which gloo would take."""
    entry = type("entry", (), {})

    def of(address: str, family: int) -> object:
        made = entry()
        made.address, made.family = address, family
        return made

    inet, inet6 = socket.AF_INET, socket.AF_INET6
    interfaces = {
        "lo": [of("127.0.0.1", inet), of("10.1.1.1", inet), of("::1", inet6)],
        "eth1": [of("10.2.2.2", inet), of("fe80::1%eth1", inet6), of("fd00::2", inet6)],
    }
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: interfaces)
    found = {
        a: network._interface_of(a)
        for a in ("127.0.0.1", "::1", "10.1.1.1", "10.2.2.2", "fd00::2", "fe80::1", "10.9.9.9")
    }
    assert found == {
        "127.0.0.1": "lo", "::1": "lo", "10.1.1.1": None, "10.2.2.2": "eth1", "fd00::2": "eth1", "fe80::1": "eth1", "10.9.9.9": None,
    }  # fmt: skip
