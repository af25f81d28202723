"""Free TCP ports on loopback, and a clear error for a taken one."""

from __future__ import annotations

import socket

from estcore.errors import ConfigurationError


def free_port() -> int:
    """Return a port that the system gives to no other process for a minute.

    A closed connection leaves the port in TIME_WAIT (RFC 9293 section 3.6.1): no other process is
    given it, but a server that names it may listen there. Without that two suites starting at the
    same time may be given one port, which both can use since front ends share ports.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = server.accept()
            accepted.close()
    return port


def check_free(port: int, what: str, setting: str) -> None:
    """Check that the port is free.

    Raises:
        ConfigurationError: naming the port, what wanted it and the setting that moves it.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as exc:
            raise ConfigurationError(
                f"port {port} for {what} is taken; choose another with {setting}", code="port.taken"
            ) from exc
