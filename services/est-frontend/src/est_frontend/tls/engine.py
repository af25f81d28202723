"""The TLS engine: pyOpenSSL's OpenSSL behind an ``ssl.SSLContext``, for uvloop and aiohttp.

The stdlib module is bound to the distribution's OpenSSL, is slower at handshakes, has no
``tls-exporter`` and ends a handshake whose client certificate it does not like, so that there
is neither an answer nor an audit record. Here every client certificate lets the handshake
finish; ``est_frontend.auth.client_certificates`` validates the path and decides who the client
is, never OpenSSL's verify result. Resumption is off. See docs/adr/0005.

``est_frontend.tls.transport`` serves connections of this context. An event loop can too, as with
any ``ssl.SSLContext``, by ``EngineConnection``.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from cryptography import x509
from OpenSSL import SSL, crypto
from typing_extensions import override

from est_frontend.tls.openssl_connection import FAILURES, OpenSSLConnection
from est_frontend.tls.records import first_record, whole_records
from estcore.errors import ConfigurationError
from estcore.pki.parsers import parser_errors
from estcore.runtime.secret_files import check_mode

_TLS12_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"
_HTTP_1_1 = b"http/1.1"
_CHUNK = 65_536
_NO_RENEGOTIATION = 0x40000000  # SSL_OP_NO_RENEGOTIATION; pyOpenSSL has no name for it
_NO_COMPRESSION = 0x00020000
_whole_records = whole_records


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
        return EngineConnection(self.connection(), incoming, outgoing)

    def connection(self) -> SSL.Connection:
        """Return a new connection of a server, over memory."""
        connection = SSL.Connection(self._engine, None)
        connection.set_accept_state()
        return connection


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


class EngineConnection(OpenSSLConnection):
    """The methods of ``ssl.SSLObject`` over a pyOpenSSL connection."""

    def __init__(
        self, connection: SSL.Connection, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO
    ) -> None:
        super().__init__(connection, finished=False)
        self._incoming = incoming
        self._outgoing = outgoing
        self._more = False
        self._closed = False
        self._at_record_start = True

    def do_handshake(self) -> None:
        """Go as far as the received records allow.

        One record at a time: a request that arrives in the same segment as the client's
        Finished stays in the incoming BIO, where the event loop looks for it.
        """
        data = self._incoming.read()
        try:
            while True:
                record, data = first_record(data)
                if record:
                    self._feed(record)
                try:
                    self._connection.do_handshake()
                except SSL.WantReadError:
                    if record and first_record(data)[0]:
                        continue
                    raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "want read") from None
                self._finished = True
                return
        except FAILURES as exc:
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
        except FAILURES as exc:
            self._flush()
            raise _failure(exc) from exc
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, data: Any) -> int:
        """Encrypt ``data`` whole."""
        try:
            sent = self._connection.send(bytes(data))
        except SSL.WantReadError:
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "want read") from None
        except FAILURES as exc:
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
        except FAILURES as exc:
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
        except FAILURES as exc:
            raise _failure(exc) from exc

    def _flush(self) -> None:
        try:
            while True:
                octets = self._connection.bio_read(_CHUNK)
                self._outgoing.write(octets)
                if len(octets) < _CHUNK:
                    return
        except FAILURES:
            # Nothing left to send, or a broken connection, which the next call reports.
            return

    @property
    def context(self) -> ssl.SSLContext | None:
        """Required by asyncio's transport; not used."""
        return None


def _failure(error: Exception) -> ssl.SSLError:
    """Return the only kind of error that event loops end a connection by without a log line."""
    return ssl.SSLError(ssl.SSL_ERROR_SSL, _text(error))


def _text(error: Exception) -> str:
    """Return the reasons of OpenSSL's error queue, or the name of an error without one.

    ``args[0]`` is the queue as a list of tuples, or a number: SysCallError(-1, "Unexpected EOF").
    """
    queue = error.args[0] if error.args else None
    parts = queue if isinstance(queue, list) else []
    reasons = [str(part[2]) for part in parts if isinstance(part, tuple) and part[2:]]
    return ", ".join(filter(None, reasons)) or type(error).__name__
