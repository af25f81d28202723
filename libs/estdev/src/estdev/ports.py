"""Free TCP ports on loopback, and a clear error for a taken one."""

from __future__ import annotations

import random
import socket

from estcore.errors import ConfigurationError

RANGE = range(20000, 32000)
"""Below the ports that systems give to outgoing connections (Linux: from 32768), so none of those
can take a port between its choice and its use."""


def free_port() -> int:
    """Return a free port that no other caller, in this process or another, gets until this ends.

    The reservation is a UDP socket of the same number: the system gives it to one process, and
    takes it back when that ends, however it ends. A server of the suite that is stopped and started
    again finds its port free.

    Raises:
        ConfigurationError: every port of the range is taken.
    """
    for port in random.sample(RANGE, len(RANGE)):
        reservation = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            reservation.bind(("127.0.0.1", port))
            _listen_once(port)
        except OSError:
            reservation.close()
            continue
        reservation.detach()  # open until the process ends
        return port
    raise ConfigurationError(
        f"every port from {RANGE.start} to {RANGE.stop - 1} is taken", code="port.taken"
    )


def _listen_once(port: int) -> None:
    """Listen on every address of the host for a moment.

    Raises:
        OSError: some process listens on the port, on one address or all.
    """
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    socket.create_server(("", port), family=family, dualstack_ipv6=dual).close()


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
