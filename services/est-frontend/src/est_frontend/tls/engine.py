"""The TLS engine: pyOpenSSL's OpenSSL behind an ``ssl.SSLContext``, for uvloop and aiohttp.

The stdlib module is bound to the distribution's OpenSSL, is slower at handshakes, has no
``tls-exporter`` and ends a handshake whose client certificate it does not like, so that there
is neither an answer nor an audit record. Here every client certificate lets the handshake
finish; ``est_frontend.auth.client_certificates`` validates the path and decides who the client
is, never OpenSSL's verify result. Resumption is off. See docs/adr/0005.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from cryptography import x509
from OpenSSL import SSL, crypto
from typing_extensions import override

from estcore.errors import ConfigurationError
from estcore.pki.parsers import parser_errors
from estcore.runtime.secret_files import check_mode

_TLS12_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"
_HTTP_1_1 = b"http/1.1"
_RECORD_HEADER = 5
_RECORD_TYPES = range(20, 25)
_CHUNK = 65_536
_NO_RENEGOTIATION = 0x40000000  # SSL_OP_NO_RENEGOTIATION; pyOpenSSL has no name for it
_NO_COMPRESSION = 0x00020000
_FAILURES = (SSL.Error, ValueError)
"""What pyOpenSSL raises of a connection: every SSL error, and ValueError of a memory BIO.

All of it becomes ``ssl.SSLError``, the only kind that event loops end a connection by without a
log line; anything else they log as an error with a traceback.
"""


class EngineContext(ssl.SSLContext):
    """A server context whose connections are pyOpenSSL's. Passed wherever an SSLContext fits."""

    _engine: SSL.Context
    names: frozenset[str]
    """Host names and addresses in the server's certificate, lower case."""

    def __new__(cls, certificate_file: Path, key_file: Path) -> EngineContext:
        """Load the server's certificate chain and key.

        Raises:
            ConfigurationError: unreadable, exposed to others, or not a pair.
        """
        self = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)
        self.swap(certificate_file, key_file)
        return self

    def __init__(self, certificate_file: Path, key_file: Path) -> None:
        """Everything is done in ``__new__``, as the base class wants it."""

    def swap(self, certificate_file: Path, key_file: Path) -> None:
        """Serve another certificate from the next handshake on; those under way go on.

        Raises:
            ConfigurationError: unreadable, exposed to others, or not a pair; the one before stays.
        """
        self._engine = _context(certificate_file, key_file)
        self.names = _names(certificate_file)

    @override
    def wrap_bio(  # type: ignore[override] # an object of the same behaviour, not the same class
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> EngineConnection:
        """Return the connection object asyncio and uvloop drive."""
        del server_side, server_hostname, session
        return EngineConnection(self._engine, incoming, outgoing)


def _context(certificate_file: Path, key_file: Path) -> SSL.Context:
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(
        SSL.OP_NO_TICKET | SSL.OP_CIPHER_SERVER_PREFERENCE | _NO_COMPRESSION | _NO_RENEGOTIATION
    )
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_session_id(b"est-frontend")
    context.set_cipher_list(_TLS12_CIPHERS)
    context.set_verify(SSL.VERIFY_PEER, _let_finish)
    context.set_alpn_select_callback(_select_alpn)
    check_mode(key_file, "the key of the TLS certificate")
    try:
        context.use_certificate_chain_file(str(certificate_file))
        context.use_privatekey_file(str(key_file))
        context.check_privatekey()
    except (SSL.Error, OSError) as exc:
        raise ConfigurationError(
            f"{certificate_file} and {key_file} are not a TLS certificate and its key",
            code="tls.certificate",
        ) from exc
    return context


def _names(certificate_file: Path) -> frozenset[str]:
    with parser_errors(str(certificate_file), code="tls.certificate", error=ConfigurationError):
        certificate = x509.load_pem_x509_certificates(certificate_file.read_bytes())[0]
        _ = certificate.extensions
    try:
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset()
    names = san.get_values_for_type(x509.DNSName)
    addresses = san.get_values_for_type(x509.IPAddress)
    return frozenset(name.lower() for name in [*names, *map(str, addresses)])


def _let_finish(
    connection: SSL.Connection, certificate: crypto.X509, number: int, depth: int, verified: int
) -> bool:
    """Accept every certificate for the length of the handshake; this establishes no trust."""
    del connection, certificate, number, depth, verified
    return True


def _select_alpn(connection: SSL.Connection, offered: list[bytes]) -> bytes | Any:
    del connection
    return _HTTP_1_1 if _HTTP_1_1 in offered else SSL.NO_OVERLAPPING_PROTOCOLS


class EngineConnection:
    """The methods of ``ssl.SSLObject`` over a pyOpenSSL connection."""

    server_side = True
    server_hostname: str | None = None
    srp_user: str | None = None
    """None: TLS-SRP is another process's (``est-frontend-srp``)."""

    def __init__(
        self, context: SSL.Context, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO
    ) -> None:
        self._connection = SSL.Connection(context, None)
        self._connection.set_accept_state()
        self._incoming = incoming
        self._outgoing = outgoing
        self._more = False
        self._closed = False
        self._peer: tuple[bytes, tuple[crypto.X509, ...]] | None = None
        self._finished = False
        self._at_record_start = True

    def do_handshake(self) -> None:
        """Go as far as the received records allow.

        One record at a time: a request that arrives in the same segment as the client's
        Finished stays in the incoming BIO, where the event loop looks for it.
        """
        data = self._incoming.read()
        try:
            while True:
                record, data = _first_record(data)
                if record:
                    self._feed(record)
                try:
                    self._connection.do_handshake()
                except SSL.WantReadError:
                    if record and _first_record(data)[0]:
                        continue
                    raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "want read") from None
                self._finished = True
                return
        except _FAILURES as exc:
            raise _failure(exc) from exc
        finally:
            if data:
                self._incoming.write(data)
            self._flush()

    def read(self, length: int = _CHUNK, buffer: Any = None) -> Any:
        """Return what can be decrypted now, b"" at the end of the stream.

        All records that are here are taken, since the event loop only asks again while
        ``pending`` says so.
        """
        if self._closed:
            self._more = False
            return b"" if buffer is None else 0
        fresh = self._incoming.read()
        if fresh:
            self._feed(fresh)
        records = _whole_records(fresh) if self._at_record_start else None
        # Once part of a record stayed inside, new octets need not begin with a record.
        self._at_record_start = records is not None
        data = self._decrypt(length, single=records == 1)
        if not data and not self._closed:
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "want read")
        self._more = self._more or (self._closed and bool(data))
        if buffer is None:
            return data
        buffer[: len(data)] = data
        return len(data)

    def _decrypt(self, length: int, *, single: bool) -> bytes:
        """Return up to ``length`` octets of what OpenSSL has.

        ``single``: one whole record is here and nothing else, so one call empties it and the
        costly answer "want read" need not be asked for.
        """
        parts: list[bytes] = []
        size = 0
        self._more = False
        try:
            while size < length:
                part = self._connection.recv(min(length - size, _CHUNK))
                parts.append(part)
                size += len(part)
                if single and not self._connection.pending():
                    return part
            self._more = True
        except SSL.WantReadError:
            self._flush()
        except SSL.ZeroReturnError:
            self._closed = True
            self._flush()
        except _FAILURES as exc:
            self._flush()
            raise _failure(exc) from exc
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, data: Any) -> int:
        """Encrypt ``data`` whole."""
        try:
            sent = self._connection.send(bytes(data))
        except SSL.WantReadError:
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "want read") from None
        except _FAILURES as exc:
            raise _failure(exc) from exc
        self._flush()
        return sent

    def unwrap(self) -> None:
        """Send close_notify, then wait for the peer's."""
        fresh = self._incoming.read()
        if fresh:
            self._feed(fresh)
        try:
            # The first call sends ours, the second looks for theirs.
            done = self._connection.shutdown() or self._connection.shutdown()
        except SSL.WantReadError:
            done = False
        except SSL.ZeroReturnError:
            done = True
        except _FAILURES as exc:
            raise _failure(exc) from exc
        finally:
            self._flush()
        if not done:
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "want read")

    def pending(self) -> int:
        """Positive while ``read`` has more without new data."""
        return 1 if self._more else self._connection.pending()

    def _feed(self, octets: bytes) -> None:
        try:
            self._connection.bio_write(octets)
        except _FAILURES as exc:
            raise _failure(exc) from exc

    def _flush(self) -> None:
        try:
            while True:
                octets = self._connection.bio_read(_CHUNK)
                self._outgoing.write(octets)
                if len(octets) < _CHUNK:
                    return
        except _FAILURES:
            # Nothing left to send, or a broken connection, which the next call reports.
            return

    # What aiohttp, uvloop and our handlers ask about a connection.

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

    @property
    def context(self) -> ssl.SSLContext | None:
        """Required by asyncio's transport; not used."""
        return None


def _first_record(data: bytes) -> tuple[bytes, bytes]:
    """Return the first complete TLS record and the rest; b"" when it is not complete.

    What cannot be TLS is returned whole, so that OpenSSL refuses it at once.
    """
    if data and (data[0] not in _RECORD_TYPES or data[1:2] not in {b"", b"\x03"}):
        return data, b""
    if len(data) < _RECORD_HEADER:
        return b"", data
    size = _RECORD_HEADER + int.from_bytes(data[3:5], "big")
    if len(data) < size:
        return b"", data
    return data[:size], data[size:]


def _whole_records(data: bytes) -> int | None:
    """Return how many TLS records the octets are exactly; None when they end inside one."""
    place = count = 0
    while place < len(data):
        if place + _RECORD_HEADER > len(data):
            return None
        place += _RECORD_HEADER + int.from_bytes(data[place + 3 : place + 5], "big")
        count += 1
    return count if place == len(data) else None


def _failure(error: Exception) -> ssl.SSLError:
    return ssl.SSLError(ssl.SSL_ERROR_SSL, _text(error))


def _text(error: Exception) -> str:
    """Return the reasons of OpenSSL's error queue, or the name of an error without one.

    ``args[0]`` is the queue as a list of tuples, or a number: SysCallError(-1, "Unexpected EOF").
    """
    queue = error.args[0] if error.args else None
    parts = queue if isinstance(queue, list) else []
    reasons = [str(part[2]) for part in parts if isinstance(part, tuple) and part[2:]]
    return ", ".join(filter(None, reasons)) or type(error).__name__
