"""Notifications to the service manager (sd_notify(3)): ready, status, watchdog, stopping.

One datagram on the socket that ``NOTIFY_SOCKET`` names; without it nothing is sent.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

from estcore.runtime.logs import fields

log = logging.getLogger(__name__)


class ServiceManager:
    """systemd, or whatever reads its socket."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        variables = os.environ if environ is None else environ
        self._address = variables.get("NOTIFY_SOCKET", "")
        self._status = ""
        self.watchdog_s = _watchdog_s(variables)

    def ready(self) -> None:
        """Say that units ordered after this one may start."""
        self._send("READY=1")

    def stopping(self) -> None:
        """Say that the process ends."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Say that the event loop turns, where a watchdog wants it."""
        if self.watchdog_s is not None:
            self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Say one line for ``systemctl status``, where it changed."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        address = self._address
        if address.startswith("@"):
            address = "\0" + address[1:]
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sending:
                sending.setblocking(False)
                sending.connect(address)
                sending.sendall(message.encode())
        except OSError as exc:
            log.warning("service manager not notified", extra=fields(error=str(exc)))


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    """Return the watchdog's time, None without one for this process (sd_watchdog_enabled(3))."""
    text, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not text.isascii() or not text.isdigit() or (pid and pid != str(os.getpid())):
        return None
    return int(text) / 1_000_000 or None
