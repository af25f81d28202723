"""What handlers ask about a TLS connection, answered by pyOpenSSL."""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL, crypto

FAILURES = (SSL.Error, ValueError)
"""What pyOpenSSL raises of a connection: every SSL error, and ValueError of a memory BIO."""


class OpenSSLConnection:
    """The facts of one connection, complete once its handshake is."""

    server_side = True
    server_hostname: str | None = None
    srp_user: str | None = None
    """None: TLS-SRP is another process's (``est-frontend-srp``)."""

    def __init__(self, connection: SSL.Connection, *, finished: bool = True) -> None:
        self._connection = connection
        self._finished = finished
        self._peer: tuple[bytes, tuple[crypto.X509, ...]] | None = None

    def getpeercert(self, binary_form: bool = False) -> Any:
        """Return the peer's certificate (DER) in binary form, not validated."""
        if not binary_form:
            return {}
        peer = self.peer()
        return peer[0] if peer else None

    def peer(self) -> tuple[bytes, tuple[crypto.X509, ...]] | None:
        """Return the peer's certificate (DER) and the chain it sent, leaf first; None without."""
        if self._peer is None and self._finished:
            leaf = self._connection.get_peer_certificate()
            if leaf is None:
                return None
            der = crypto.dump_certificate(crypto.FILETYPE_ASN1, leaf)
            self._peer = (der, (leaf,))
        return self._peer

    def peer_chain(self) -> tuple[crypto.X509, ...]:
        """Return every certificate the peer sent; a server's OpenSSL leaves the leaf out."""
        peer = self.peer()
        sent = self._connection.get_peer_cert_chain() or []
        return tuple(sent) if peer else ()

    def tls_unique(self) -> bytes | None:
        """RFC 5929 ``tls-unique``: the client's Finished of a full TLS 1.2 handshake."""
        if self.version() != "TLSv1.2":
            return None
        return self._connection.get_peer_finished()

    def tls_exporter(self) -> bytes:
        """RFC 9266 ``tls-exporter``: 32 octets."""
        return self._connection.export_keying_material(b"EXPORTER-Channel-Binding", 32, b"")

    def get_channel_binding(self, cb_type: str = "tls-unique") -> bytes | None:
        """Return a channel binding as SSLObject does."""
        return self.tls_unique() if cb_type == "tls-unique" else None

    def version(self) -> str:
        """Return the protocol version, for example ``TLSv1.3``."""
        return self._connection.get_protocol_version_name()

    def cipher(self) -> tuple[str, str, int] | None:
        """Return (name, version, secret bits)."""
        name = self._connection.get_cipher_name()
        if name is None:
            return None
        return name, self.version(), self._connection.get_cipher_bits() or 0

    def compression(self) -> None:
        """There is no compression."""

    def selected_alpn_protocol(self) -> str | None:
        """Return the protocol chosen by ALPN."""
        chosen = self._connection.get_alpn_proto_negotiated()
        return chosen.decode() if chosen else None
