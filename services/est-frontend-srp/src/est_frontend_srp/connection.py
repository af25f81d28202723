"""One connection over TLS-SRP, in the form asyncio and uvloop drive and the handlers ask.

Like ``est_frontend.tls.engine``: an ``ssl.SSLContext`` whose connections are another library's, so
that the event loop, aiohttp and the handlers stay as they are.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Iterator
from typing import Any

from OpenSSL import crypto
from typing_extensions import override

from est_frontend import rate_limits
from est_frontend.rate_limits import Backoff, TooOften
from est_frontend_srp.tlslite import (
    AlertDescription,
    BaseTLSException,
    Engine,
    MemorySocket,
    server_settings,
)
from est_frontend_srp.verifier_file import Entry, Verifiers
from estcore.runtime.logs import fields

log = logging.getLogger(__name__)

_CIPHERS = {f"aes{bits}": (f"SRP-AES-{bits}-CBC-SHA", "TLSv1.2", bits) for bits in (128, 256)}
"""As OpenSSL names them."""
_MAX_UNREAD = 64 * 1024
"""Octets of tlslite's own answers that may wait for a peer that does not read."""


class Attempt:
    """One client's authentication attempt, as tlslite looks up verifiers."""

    def __init__(self, verifiers: Verifiers, backoff: Backoff, source: str) -> None:
        self._verifiers, self._backoff = verifiers, backoff
        self._source = source
        self.name: str | None = None
        self.proved = False
        self._begun: rate_limits.Attempt | None = None

    @property
    def account(self) -> str:
        """User and source together, for growing pauses."""
        return f"{(self.name or '')[:64]}@{self._source}"

    def __getitem__(self, name: bytes) -> Entry:
        """Return what the handshake needs for a user.

        Raises:
            TooOften: this user, known or not, must pause for this source, or has as many
                handshakes under way as may fail.
        """
        self.name = name.decode("utf-8", "replace")
        if self._begun is not None:
            self._begun.withdrawn()
        self._begun = self._backoff.begin_now(self.account, self._source)
        return self._verifiers.lookup(name)

    def ended(self) -> None:
        """Count the handshake, which has ended, for the pauses of this user."""
        if self._begun is None:
            return
        if self.proved:
            self._begun.forgive()
        else:
            self._begun.failed()


class SRPContext(ssl.SSLContext):
    """The context of one connection. Passed wherever an SSLContext fits."""

    _attempt: Attempt
    _refused: Callable[[], object]
    _early: bytearray

    def __new__(
        cls, attempt: Attempt, refused: Callable[[], object], early: bytearray
    ) -> SRPContext:
        """``refused`` is called when the handshake has failed and the alert is written.

        ``early`` is what has come before the TLS protocol was there.
        """
        self = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)
        self._attempt, self._refused, self._early = attempt, refused, early
        return self

    def __init__(self, attempt: Attempt, refused: Callable[[], object], early: bytearray) -> None:
        """Everything is done in ``__new__``, as the base class wants it."""

    @override
    def wrap_bio(  # type: ignore[override] # an object of the same behaviour, not the same class
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> SRPConnection:
        """Return the connection object asyncio and uvloop drive."""
        del server_side, server_hostname, session
        incoming.write(self._early)
        return SRPConnection(self._attempt, self._refused, incoming, outgoing)


class SRPConnection:
    """The methods of ``ssl.SSLObject`` over tlslite, and what our handlers ask."""

    server_side = True
    server_hostname: str | None = None
    context: ssl.SSLContext | None = None

    def __init__(
        self,
        attempt: Attempt,
        refused: Callable[[], object],
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
    ) -> None:
        self._attempt, self._refused = attempt, refused
        self._engine = Engine(MemorySocket(incoming, outgoing))
        self._handshake: Iterator[int] | None = self._engine.handshakeServerAsync(
            verifierDB=attempt, settings=server_settings()
        )
        self._reading: Iterator[Any] | None = None
        self._plain = bytearray()
        self._outgoing = outgoing
        self._unread = 0

    def do_handshake(self) -> None:
        """Go as far as the received records allow.

        After a failure the alert waits to be sent, which event loops do only for a handshake
        that wants more; so it wants more, and ``refused`` ends the connection.
        """
        if self._handshake is None:
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "the handshake has failed")
        try:
            next(self._handshake)
        except StopIteration:
            self._attempt.proved = True
            return
        except TooOften:
            self._fail(AlertDescription.access_denied)
        except (BaseTLSException, OSError):
            self._fail(None)
        except Exception as exc:  # noqa: BLE001 - Bulkhead: a parser of octets of strangers.
            log.info("handshake not readable", extra=fields(error=type(exc).__name__))
            self._fail(AlertDescription.handshake_failure)
        raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "want read")

    def _fail(self, alert: int | None) -> None:
        self._handshake = None
        if alert is not None:
            self._engine.send_alert(alert)
        self._refused()

    def read(self, length: int = 65_536, buffer: Any = None) -> Any:
        """Return what can be decrypted now, b"" at the end of the stream."""
        while not self._plain and self._receive():
            pass
        data = bytes(self._plain[:length])
        del self._plain[: len(data)]
        if not data and not self._engine.closed:
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "want read")
        if buffer is None:
            return data
        buffer[: len(data)] = data
        return len(data)

    def _receive(self) -> bool:
        """Decrypt one record; False when there is none, or no more."""
        if self._engine.closed:
            return False
        # A record that came in part is in the generator until the rest is here.
        self._reading = self._reading or self._engine.readAsync()
        waiting = self._outgoing.pending
        try:
            received = next(self._reading)
        except Exception as exc:  # Bulkhead: a parser that is not ours, as above.
            raise ssl.SSLError(ssl.SSL_ERROR_SSL, type(exc).__name__) from exc
        # tlslite answers each attempt to renegotiate with an alert by itself.
        self._unread = (self._unread if waiting else 0) + self._outgoing.pending - waiting
        if self._unread > _MAX_UNREAD:
            raise ssl.SSLError(ssl.SSL_ERROR_SSL, "the peer does not read")
        if isinstance(received, int):
            return False
        self._reading = None
        self._plain += received
        return bool(received)

    def write(self, data: Any) -> int:
        """Encrypt ``data`` whole."""
        octets = bytes(data)
        self._finish(self._engine.writeAsync(octets))
        return len(octets)

    def unwrap(self) -> None:
        """Send close_notify; the peer's is not waited for."""
        self._finish(self._engine.closeAsync())

    def _finish(self, steps: Iterator[Any]) -> None:
        try:
            for _ in steps:
                pass
        except Exception as exc:  # Bulkhead: a library that is not ours, as above.
            raise ssl.SSLError(ssl.SSL_ERROR_SSL, type(exc).__name__) from exc

    def pending(self) -> int:
        """How much ``read`` has without new data."""
        return len(self._plain)

    # What aiohttp, uvloop and our handlers ask about a connection.

    @property
    def srp_user(self) -> str | None:
        """Who has proved to know the password of this user; None before the handshake is done."""
        return self._attempt.name if self._attempt.proved else None

    def getpeercert(self, binary_form: bool = False) -> Any:
        """There is no certificate."""
        return None if binary_form else {}

    def peer(self) -> tuple[bytes, tuple[crypto.X509, ...]] | None:
        """There is no certificate."""
        return None

    def peer_chain(self) -> tuple[crypto.X509, ...]:
        """There is no certificate."""
        return ()

    def tls_unique(self) -> bytes | None:
        """RFC 5929 ``tls-unique``: the client's Finished."""
        return self._engine.client_finished

    def tls_exporter(self) -> bytes | None:
        """There is none: tlslite's exporter does not take the context RFC 9266 demands."""
        return None

    def get_channel_binding(self, cb_type: str = "tls-unique") -> bytes | None:
        """Return a channel binding as SSLObject does."""
        return self.tls_unique() if cb_type == "tls-unique" else None

    def version(self) -> str:
        """Return the protocol version; there is one."""
        return "TLSv1.2"

    def cipher(self) -> tuple[str, str, int] | None:
        """Return (name, version, secret bits)."""
        return _CIPHERS.get(self._engine.getCipherName())

    def compression(self) -> None:
        """There is no compression."""

    def selected_alpn_protocol(self) -> str | None:
        """There is one protocol, HTTP/1.1, and no ALPN."""
        return None
