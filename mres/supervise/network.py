"""Over which network interface the ranks of several machines talk.

gloo listens at the address that the machine's own name has. On many clusters nodes do not resolve their own names, or
Debian's `127.0.1.1 host` does: then ranks of two machines cannot meet. What surely works is the interface over which a
rank has just reached rank 0, at MASTER_ADDR.
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import psutil  # type: ignore[import-untyped]

from mres.errors import UserError, near

if TYPE_CHECKING:
    import torch.distributed as dist

GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
_WAY, _MASTER = "way", "master"
_CONNECT_S = 10.0


class Way(NamedTuple):
    """How a rank reaches rank 0: from its own `address`, at rank 0's address as seen from here (`master`)."""

    address: str
    master: str

    @property
    def is_local(self) -> bool:
        return _is_loopback(self.address)


def check_chosen_interface() -> None:
    """Raises: UserError: GLOO_SOCKET_IFNAME names an interface that this machine does not have."""
    known = psutil.net_if_addrs()
    for name in filter(None, os.environ.get(GLOO, "").split(",")):
        if name not in known:
            raise UserError(
                f"the environment variable {GLOO}={os.environ[GLOO]!r} names no interface of {socket.gethostname()}; "
                f"{near(name, list(known))}; without it, mres takes the one that leads to MASTER_ADDR"
            )


def choose_interface(store: dist.Store, rank: int, size: int) -> str:
    """Sets GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME where they are not set; all ranks, once they have met at `store`.

    Returns what rank 0 says of it: one line; "" on the others.
    """
    mine = _way_to_master()
    store.set(f"{_WAY}/{rank}", json.dumps([socket.gethostname(), mine]))
    if rank == 0:
        keys = [f"{_WAY}/{r}" for r in range(size)]
        store.wait(keys)
        hosts, ways = zip(*(_read(value) for value in store.multi_get(keys)), strict=True)
        # Rank 0's machine may know its own name as a loopback address; how the others reach it is its address.
        store.set(_MASTER, next((way.master for way in ways if way and not way.is_local), ""))
    master = store.get(_MASTER).decode()
    address = master if mine and mine.is_local and master else mine.address if mine else ""
    interface = _interface_of(address)
    said = _use(interface, address)
    return f"network: {said}, {_machines(hosts)}" if rank == 0 else ""


def _way_to_master() -> Way | None:
    """None where rank 0 is not to be reached by an ordinary connection."""
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    with suppress(OSError), socket.create_connection(place, timeout=_CONNECT_S) as connection:
        return Way(_plain(connection.getsockname()[0]), _plain(connection.getpeername()[0]))
    return None


def _read(value: bytes) -> tuple[str, Way | None]:
    host, way = json.loads(value)
    return host, way and Way(*way)


def _plain(address: str) -> str:
    """Without the zone of an IPv6 address (`fe80::1%eth0`); an IPv4 address in IPv6's clothes as what it is."""
    found = ipaddress.ip_address(address.partition("%")[0])
    return str(getattr(found, "ipv4_mapped", None) or found)


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def _interface_of(address: str) -> str | None:
    """The interface that has an address; None where gloo, which takes an interface's first one, would not find it there."""
    for name, entries in psutil.net_if_addrs().items():
        its = [_plain(e.address) for e in entries if e.family in (socket.AF_INET, socket.AF_INET6)]
        if address in its:
            # Where hosts are routers, the address that counts lies on `lo`, behind 127.0.0.1.
            return name if _is_loopback(its[0]) == _is_loopback(address) else None
    return None


def _use(interface: str | None, address: str) -> str:
    """Sets the variables; says what is used."""
    if os.environ.get(GLOO):
        said = f"{os.environ[GLOO]} ({GLOO})"
    elif interface is None:
        return f"left to gloo: no interface leads to rank 0 ({GLOO} names one)"
    else:
        os.environ[GLOO] = interface
        said = f"{interface} ({address})"
    # On one machine NCCL needs no network; "=": this one alone, not all whose names begin so.
    if interface is not None and not _is_loopback(address):
        os.environ.setdefault(NCCL, f"={interface}")
    return said


def _machines(hosts: Sequence[str]) -> str:
    number = len(set(hosts))
    return "one machine" if number == 1 else f"{number} machines"
