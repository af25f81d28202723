"""Facts of a TLS connection that handlers use, independent of the TLS library."""

from __future__ import annotations

from typing import Protocol

from OpenSSL import crypto


class ClientConnection(Protocol):
    """A TLS connection from a client, of any TLS library."""

    @property
    def srp_user(self) -> str | None:
        """The user whose password the handshake proved, with TLS-SRP."""
        ...

    def peer(self) -> tuple[bytes, tuple[crypto.X509, ...]] | None:
        """The peer's certificate (DER) and the chain it sent, leaf first; None without."""
        ...

    def peer_chain(self) -> tuple[crypto.X509, ...]:
        """Every certificate the peer sent."""
        ...

    def tls_unique(self) -> bytes | None:
        """RFC 5929 ``tls-unique``, where there is one."""
        ...

    def tls_exporter(self) -> bytes | None:
        """RFC 9266 ``tls-exporter``, where there is one."""
        ...

    def version(self) -> str:
        """The protocol version, for example ``TLSv1.3``."""
        ...

    def cipher(self) -> tuple[str, str, int] | None:
        """(name, version, secret bits)."""
        ...
