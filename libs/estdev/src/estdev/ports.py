"""Free TCP ports on loopback, and a clear error for a taken one."""

from __future__ import annotations

import socket

from estcore.errors import ConfigurationError


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
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
