"""An EST server that is not ours, for tests of the conformance tool: small, and as wrong as a test sets it.

``refuse`` answers every POST with that status. Otherwise anybody gets a certificate for any
CSR, as test servers in the field do it. The answers repeat what they were sent.
"""

from __future__ import annotations

import base64
import datetime as dt
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    pkcs7,
)
from cryptography.x509.oid import NameOID
from typing_extensions import override

CERTS_ONLY = "application/pkcs7-mime"
CA_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Foreign CA")])


class _QuietServer(ThreadingHTTPServer):
    @override
    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients of these tests break handshakes and connections."""


class ForeignServer:
    """Serves EST on a free port of loopback until closed."""

    def __init__(self, folder: Path, *, refuse: int | None = None) -> None:
        self.refuse = refuse
        self.encodings: list[str | None] = []
        """Content-Transfer-Encoding of every request with a body."""
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.root = self.certify(CA_NAME, self.key.public_key(), ca=True)
        self.ca_file = folder / "foreign-ca.pem"
        self.ca_file.write_bytes(self.root.public_bytes(Encoding.PEM))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._server_files(folder))
        context.load_verify_locations(self.ca_file)
        context.verify_mode = ssl.CERT_OPTIONAL
        self._server = _QuietServer(("127.0.0.1", 0), self._handler())
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"https://localhost:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def certify(
        self, subject: x509.Name, public_key: CertificatePublicKeyTypes, *, ca: bool = False
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(CA_NAME)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        )
        return builder.sign(self.key, SHA256())

    def _server_files(self, folder: Path) -> Path:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        file = folder / "foreign-server.pem"
        file.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            + self.certify(name, key.public_key()).public_bytes(Encoding.PEM)
        )
        return file

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 10

            def do_GET(self) -> None:
                if not self.path.endswith("/cacerts"):
                    self.answer(404, b"not found")
                    return
                self.answer(200, server.bundle(server.root), CERTS_ONLY)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if body:
                    server.encodings.append(self.headers.get("Content-Transfer-Encoding"))
                echo = f"got {self.headers.get('Authorization')}".encode()
                if server.refuse is not None:
                    self.answer(server.refuse, echo)
                    return
                try:
                    csr = x509.load_der_x509_csr(base64.b64decode(body))
                    certificate = server.certify(csr.subject, csr.public_key())
                except ValueError:
                    self.answer(400, echo)
                    return
                kind = f"{CERTS_ONLY}; smime-type=certs-only"
                self.answer(200, server.bundle(certificate), kind)

            def answer(self, status: int, body: bytes, kind: str = "text/plain") -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            @override
            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        return Handler

    def bundle(self, certificate: x509.Certificate) -> bytes:
        der = pkcs7.serialize_certificates([certificate], Encoding.DER)
        return base64.b64encode(der) + b"\n"
