"""Which servers a connection without TLS may reach: those on this machine.

A Unix socket and loopback addresses never leave the machine. A host name other than ``localhost``
is not looked up: its address may change at any time.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import parse_qsl, unquote, urlsplit

from estcore.errors import ConfigurationError

_LOCAL_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost")


def is_local(host: str) -> bool:
    """Return whether a host of a URL is this machine: loopback, or the path of a Unix socket."""
    if host.startswith(("/", "@")) or host.lower().rstrip(".") in _LOCAL_NAMES:
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def plaintext_nats(url: str) -> list[str]:
    """Return the ``nats://`` servers among these, separated by commas, on other machines."""
    servers = [server.strip() for server in url.split(",")]
    plain = [server for server in servers if not server.startswith("tls://")]
    return [server for server in plain if not is_local(_nats_host(server))]


def _nats_host(server: str) -> str:
    try:
        return urlsplit(server).hostname or ""
    except ValueError:  # no IPv6 address in the brackets
        return ""


def remote_postgres(url: str, environ: Mapping[str, str]) -> list[str]:
    """Return the hosts of a PostgreSQL URL on other machines.

    Read as asyncpg reads it: hosts stand in the authority, else in the parameter ``host``, else in
    ``PGHOST``; without any it takes the Unix socket. A service of ``pg_service.conf`` may name any
    host and counts as another machine.
    """
    # Not urlsplit: newer ones take no list of hosts with an IPv6 address in it.
    rest, _, query = url.partition("#")[0].partition("//")[2].partition("?")
    authority = rest.partition("/")[0]
    named = [_postgres_host(place) for place in authority.partition("@")[2].split(",")]
    services = [environ.get("PGSERVICE", "")]
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name == "host":
            named += [_postgres_host(place) for place in value.split(",")]
        elif name == "service":
            services.append(value)
    if any(services):
        return [f"service {service}" for service in services if service]
    hosts = [host for host in named if host] or [
        host for host in environ.get("PGHOST", "").split(",") if host
    ]
    return [host for host in hosts if not is_local(host)]


def _postgres_host(place: str) -> str:
    """Return the host of ``host:port``, ``[address]:port`` or an escaped path."""
    text = unquote(place)
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text if text.startswith("/") else text.partition(":")[0]


def refuse_plaintext(what: str, servers: list[str], instead: str) -> None:
    """Refuse servers on other machines without TLS; ``what`` is their section of the settings.

    Raises:
        ConfigurationError: ``connection.plaintext``.
    """
    if servers:
        raise ConfigurationError(
            f"{what}.url: no TLS to {', '.join(servers)}, which is not this machine; {instead}",
            code="connection.plaintext",
        )
