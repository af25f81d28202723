"""Listening sockets, the same for every port of a service.

``::`` is all addresses of both families: one socket that takes IPv4 as well (``asyncio`` alone
would take IPv6 only). Where a client comes from is then normalised: the IPv4 address and no
``::ffff:`` before it.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from estcore.errors import ConfigurationError

_BOTH_FAMILIES = "::"
_SOURCE_BITS = 64
_ADDRESSES = 10_000

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


def open_sockets(
    host: str, port: int, *, what: str = "", backlog: int = 100, reuse_port: bool = False
) -> list[socket.socket]:
    """Return sockets that listen on every address of a host; ``what`` names the port in errors.

    Raises:
        ConfigurationError: the port is taken, or the host has no address on this machine.
    """
    opened: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, kind, protocol, _, address in dict.fromkeys(found):
            listening = socket.socket(family, kind, protocol)
            opened.append(listening)
            listening.setblocking(False)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port and hasattr(socket, "SO_REUSEPORT"):
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                only = host != _BOTH_FAMILIES
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
            listening.bind(address)
            listening.listen(backlog)
    except OSError as exc:
        for listening in opened:
            listening.close()
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise ConfigurationError(
            f"cannot listen on {f'{what} ' if what else ''}{place}: {exc.strerror}",
            code="port.taken",
        ) from exc
    return opened


class Servers:
    """What listens on the sockets of one host."""

    def __init__(self, servers: Sequence[asyncio.Server]) -> None:
        self._servers = servers

    @classmethod
    async def start(cls, serve: Serve, sockets: Sequence[socket.socket], *, limit: int) -> Servers:
        """Serve each connection in a task, with its streams; ``limit`` is that of a reader."""
        return cls([await asyncio.start_server(serve, sock=s, limit=limit) for s in sockets])

    @property
    def port(self) -> int:
        """The port of the first socket."""
        port: int = self._servers[0].sockets[0].getsockname()[1]
        return port

    def close(self) -> None:
        """Stop listening."""
        for server in self._servers:
            server.close()


def address_of(peername: Any) -> str:
    """Return the address of a client as text: IPv4 without ``::ffff:``, no scope; or unknown."""
    return _address(str(peername[0])) if peername else "unknown"


def source_of(address: str) -> str:
    """Return what limits count by: an IPv4 address, or the /64 network of an IPv6 address.

    A client of IPv6 has a whole /64 (RFC 6177), and with it as many addresses as it wants.
    """
    return _source(address)


@functools.lru_cache(_ADDRESSES)
def _address(text: str) -> str:
    parsed = _parsed(text)
    return text if parsed is None else str(parsed)


@functools.lru_cache(_ADDRESSES)
def _source(text: str) -> str:
    parsed = _parsed(text)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((parsed, _SOURCE_BITS), strict=False))
    return text if parsed is None else str(parsed)


def _parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
