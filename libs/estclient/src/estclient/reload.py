"""A TLS server that takes a new certificate while it serves: no restart, no dropped connection.

``ServerCertificate.context`` is one ``ssl.SSLContext`` for the life of the server: asyncio,
aiohttp, uvicorn, gunicorn and others take one. Its SNI callback gives each new handshake the newest
certificate, with or without a server name from the client; connections that run keep theirs.

A context in use is never changed: ``load_cert_chain`` with a key that does not match would break
every later handshake. A fresh one is built, tried by a handshake in memory, and only then used.
What cannot be used is reported, and the certificate of before stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import ssl
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from estclient.errors import BundleInvalid

log = logging.getLogger(__name__)

_EVERY_S = 1.0
_ROUNDS = 10


@dataclass(frozen=True)
class _Version:
    """One state of the files, by what a file system says of them."""

    stamps: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, files: Sequence[Path]) -> _Version:
        found = []
        for file in files:
            stat = file.stat()  # of what a link leads to: the agent moves the link
            found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
        return cls(tuple(found))


class ServerCertificate:
    """Certificate and key files of a server, and the context that presents the newest pair.

    ``trust``: CA certificates (PEM) for clients' certificates, which are then required. They are
    read again with every reload. Thread-safe.
    """

    def __init__(
        self,
        certificate: Path,
        key: Path,
        *,
        trust: Path | None = None,
        alpn: Sequence[str] = (),
    ) -> None:
        """Load the files.

        Raises:
            BundleInvalid: they cannot be used.
        """
        self._files = [certificate, key, *([trust] if trust else [])]
        self._trust, self._alpn = trust, list(alpn)
        self._lock = threading.Lock()
        self._loaded: _Version | None = None
        self._reported = ""
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._current = self._fresh()
        self.context = self._fresh()
        self.context.sni_callback = self._choose

    def reload(self) -> bool:
        """Use what the files have now; returns whether it is something new.

        Raises:
            BundleInvalid: they cannot be used; the certificate of before stays.
        """
        with self._lock:
            try:
                if _Version.of(self._files) == self._loaded:
                    return False
            except OSError as exc:
                raise _unusable(exc) from exc
            self._current = self._fresh()
            return True

    async def watch(self, every_s: float = _EVERY_S) -> None:
        """Reload whenever the files change, until cancelled: a task of an asyncio server."""
        while True:
            await asyncio.sleep(every_s)
            self._look()

    def start(self, every_s: float = _EVERY_S) -> None:
        """Reload whenever the files change, in a thread of its own until ``stop``."""
        self._thread = threading.Thread(target=self._run, args=(every_s,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread of ``start``."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, every_s: float) -> None:
        while not self._stopped.wait(every_s):
            self._look()

    def _look(self) -> None:
        try:
            if self.reload():
                log.info("server certificate reloaded: %s", self._files[0])
            self._reported = ""
        except BundleInvalid as exc:
            # Files that are replaced one after the other do not fit for a moment.
            if exc.reason != self._reported:
                log.warning("server certificate not reloaded: %s", exc.reason)
            self._reported = exc.reason

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _: ssl.SSLContext) -> None:
        connection.context = self._current

    def _fresh(self) -> ssl.SSLContext:
        """Return a context with what the files have, tried in memory.

        Raises:
            BundleInvalid: they cannot be used.
        """
        try:
            version = _Version.of(self._files)
            context = _context(self._files[0], self._files[1], self._trust, self._alpn)
        except (OSError, ValueError) as exc:
            raise _unusable(exc) from exc
        self._loaded = version
        return context


def grpc_credentials(certificate: Path, key: Path, *, trust: Path | None = None) -> Any:
    """Return ``grpc.ServerCredentials`` that read the files again when they change.

    With ``trust`` clients need a certificate of one of its CAs. Needs ``grpcio``.

    Raises:
        BundleInvalid: the files cannot be used.
    """
    grpc = importlib.import_module("grpc")
    files = [certificate, key, *([trust] if trust else [])]
    known: list[tuple[_Version, Any]] = []

    def configuration() -> Any:
        version = _Version.of(files)
        if known and known[0][0] == version:
            return None  # as before
        _context(certificate, key, trust, [])
        pair = (key.read_bytes(), certificate.read_bytes())
        roots = trust.read_bytes() if trust else None
        fresh = grpc.ssl_server_certificate_configuration([pair], root_certificates=roots)
        known[:] = [(version, fresh)]
        return fresh

    def fetch() -> Any:
        try:
            return configuration()
        except (OSError, ValueError) as exc:
            log.warning("server certificate not reloaded: %s", exc)
            return None

    try:
        first = configuration()
    except (OSError, ValueError) as exc:
        raise _unusable(exc) from exc
    return grpc.dynamic_ssl_server_credentials(
        first, fetch, require_client_authentication=trust is not None
    )


def _context(
    certificate: Path, key: Path, trust: Path | None, alpn: Sequence[str]
) -> ssl.SSLContext:
    """Return a context that completes a handshake.

    Raises:
        OSError, ValueError: unreadable, not a pair, or refused by TLS.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    _try(context)
    if trust is not None:
        context.load_verify_locations(cafile=trust)
        context.verify_mode = ssl.CERT_REQUIRED
        # A resumed session would not look at the client's certificate again.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    return context


def _try(context: ssl.SSLContext) -> None:
    """Complete one handshake in memory; nothing is verified but the signature by the key."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server),
        context.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(_ROUNDS):
        for side in list(sides):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
                sides.remove(side)
        if not sides:
            return
    raise ssl.SSLError("the handshake does not end")


def _unusable(error: Exception) -> BundleInvalid:
    return BundleInvalid(f"the server's certificate cannot be used: {error}")
