"""A small EST server with a real CA: the stand-in for est-frontend, the client's peer."""

from __future__ import annotations

import base64
import datetime as dt
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import format_datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from estclient.agent.bundle import Bundle
from estclient.est.keys import PrivateKey, key_pem, make_key
from estcore.clock import Clock, SystemClock
from estcore.est.certs_only import certs_only

# Python 3.13 verifies with X509_STRICT: a CA certificate needs a key usage.
_SIGNS = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
BASIC = "Basic " + base64.b64encode(b"device-1:s3cret").decode()


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class CA:
    """A root and an intermediate that issue what they are asked."""

    def __init__(self) -> None:
        self.root_key = ec.generate_private_key(ec.SECP384R1())
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.root = self._authority(name("root"), self.root_key.public_key())
        self.issuer = self._authority(name("issuing"), self.key.public_key())
        self.pem = self.root.public_bytes(Encoding.PEM) + self.issuer.public_bytes(Encoding.PEM)

    def _authority(self, subject: x509.Name, public_key: Any) -> x509.Certificate:
        return (
            self._builder(subject, name("root"), public_key, dt.timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_SIGNS, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.root_key.public_key()),
                critical=False,
            )
            .sign(self.root_key, hashes.SHA256())
        )

    def cross(self, other: CA) -> x509.Certificate:
        """Return a certificate of the other root's key (and the same name), signed by this root."""
        return self._authority(name("root"), other.root_key.public_key())

    def _builder(
        self, subject: x509.Name, issuer: x509.Name, key: Any, life: dt.timedelta
    ) -> x509.CertificateBuilder:
        now = SystemClock().now().replace(microsecond=0)
        return x509.CertificateBuilder(
            issuer, subject, key, x509.random_serial_number(), now, now + life
        )

    def issue(
        self,
        csr: x509.CertificateSigningRequest,
        *,
        life: dt.timedelta = dt.timedelta(days=1),
        key: Any = None,
    ) -> x509.Certificate:
        """Return a certificate for the request (``key`` puts another key in)."""
        builder = self._builder(csr.subject, self.issuer.subject, key or csr.public_key(), life)
        for extension in csr.extensions:
            builder = builder.add_extension(extension.value, extension.critical)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = builder.add_extension(authority, critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def bundle(
        self, subject: str = "web.demo", *, life: dt.timedelta = dt.timedelta(days=1)
    ) -> Bundle:
        """Return a credential as enrollment would give it."""
        key: PrivateKey = make_key()
        csr = (
            x509.CertificateSigningRequestBuilder(name(subject))
            .add_extension(
                x509.SubjectAlternativeName([x509.DNSName(subject), x509.DNSName("localhost")]),
                critical=False,
            )
            .sign(key, hashes.SHA256())
        )
        return Bundle(self.issue(csr, life=life), key, (self.root, self.issuer))


@dataclass
class Seen:
    """One request as the server saw it."""

    operation: str
    body: bytes
    authorization: str | None
    client: str | None
    connection: int
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class ESTServer:
    """Answers EST; ``script`` holds answers to give before behaving.

    Requests for renewal information are in ``asked`` and not in ``seen``; ``info`` answers them by
    the path's last segment, 404 without one. ``clock`` makes the Date of every answer.
    """

    ca: CA
    folder: Path
    script: list[Any] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    asked: list[Seen] = field(default_factory=list)
    info: Callable[[str], web.Response] = lambda _: web.Response(status=404)
    clock: Clock = field(default_factory=SystemClock)
    life: dt.timedelta = dt.timedelta(days=1)
    wrong_key: bool = False
    extra: tuple[x509.Certificate, ...] = ()
    port: int = 0
    _runner: Any = None

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def operations(self) -> list[str]:
        return [s.operation for s in self.seen]

    async def start(self) -> None:
        bundle = self.ca.bundle("localhost")
        certificate, key = self.folder / "server.pem", self.folder / "server.key"
        chain = bundle.certificate.public_bytes(Encoding.PEM)
        certificate.write_bytes(chain + self.ca.issuer.public_bytes(Encoding.PEM))
        key.touch(mode=0o600)
        key.write_bytes(key_pem(bundle.key))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(cadata=self.ca.pem.decode())
        context.verify_mode = ssl.CERT_OPTIONAL
        application = web.Application()
        application.router.add_route("*", "/.well-known/est/{tail:.*}", self._handle)

        async def date(_: web.Request, response: web.StreamResponse) -> None:
            response.headers["Date"] = format_datetime(self.clock.now(), usegmt=True)

        application.on_response_prepare.append(date)
        self._runner = web.AppRunner(application)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "localhost", self.port, ssl_context=context)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.Response:
        secured = request.transport.get_extra_info("ssl_object")  # type: ignore[union-attr]
        der = secured.getpeercert(binary_form=True)
        above, operation = request.path.rsplit("/", 1)
        body = await request.read()
        seen = Seen(
            operation,
            body,
            request.headers.get("Authorization"),
            sha256(der).hexdigest() if der else None,
            id(request.transport),
            dict(request.headers),
        )
        if above.endswith("/renewal-info"):
            self.asked.append(seen)
            return self.info(operation)
        self.seen.append(seen)
        if self.script:
            scripted = self.script.pop(0)
            if scripted is not None:
                answer: web.Response = scripted() if callable(scripted) else scripted
                return answer
        return self._answer(operation, body)

    def _answer(self, operation: str, body: bytes) -> web.Response:
        if operation == "cacerts":
            return self._certificates(self.ca.root, self.ca.issuer, *self.extra)
        if operation == "rotation-ack":
            return web.Response(status=204)
        csr = x509.load_der_x509_csr(base64.b64decode(body))
        other = ec.generate_private_key(ec.SECP256R1()).public_key() if self.wrong_key else None
        return self._certificates(self.ca.issue(csr, life=self.life, key=other))

    def _certificates(self, *certificates: x509.Certificate) -> web.Response:
        der = certs_only(c.public_bytes(Encoding.DER) for c in certificates)
        headers = {"X-Correlation-ID": "c-42", "Content-Transfer-Encoding": "base64"}
        body = base64.encodebytes(der)
        kind = "application/pkcs7-mime; smime-type=certs-only"
        return web.Response(body=body, content_type=None, headers=headers | {"Content-Type": kind})
