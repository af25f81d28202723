"""A CA that is not ours, with an EST server that behaves as a test sets it: right, slow, or wrong.

The certificates are made with pyca's own builder and the answers with pyca's own PKCS#7, so that
none of our code checks itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ssl
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    pkcs7,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from estdev.ports import free_port

DAY = dt.timedelta(days=1)
Behaviour = Callable[[web.Request, bytes], Awaitable[web.StreamResponse]]


def named(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@dataclass
class OtherCA:
    """Root, issuing CA, an EST server, and what it has seen and made."""

    folder: Path
    port: int = field(default_factory=free_port)
    seen: list[bytes] = field(default_factory=list)
    peers: list[str] = field(default_factory=list)
    issued: list[x509.Certificate] = field(default_factory=list)
    behaviour: Behaviour | None = None
    unavailable: bool = False

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.root_key, self.key = new_key(), new_key()
        self.root = self._decision_context("Other Root", self.root_key, None)
        self.certificate = self._decision_context("Other Issuing CA", self.key, self.root)
        self.write("root.pem", self.root)
        self.write("issuing.pem", self.certificate)
        self.credential(
            "server", san=[x509.DNSName("localhost")], purposes=(ExtendedKeyUsageOID.SERVER_AUTH,)
        )
        self.credential("ra", common_name="our-ra")

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def path(self, name: str) -> Path:
        return self.folder / name

    def write(self, name: str, certificate: x509.Certificate) -> Path:
        self.path(name).write_bytes(certificate.public_bytes(Encoding.PEM))
        return self.path(name)

    def credential(self, name: str, common_name: str | None = None, **changes: Any) -> None:
        """Write ``<name>.pem`` and ``<name>.key`` for TLS."""
        key = new_key()
        csr = x509.CertificateSigningRequestBuilder(named(common_name or name)).sign(
            key, hashes.SHA256()
        )
        path = self.write(f"{name}.pem", self.sign(csr, **changes))
        path.write_bytes(path.read_bytes() + self.certificate.public_bytes(Encoding.PEM))
        octets = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self.path(f"{name}.key").touch(mode=0o600)
        self.path(f"{name}.key").write_bytes(octets)

    def _decision_context(
        self, name: str, key: ec.EllipticCurvePrivateKey, parent: x509.Certificate | None
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        public = key.public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(named(name))
            .issuer_name(parent.subject if parent else named(name))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 365 * DAY)
            .not_valid_after(now + 3650 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.root_key.public_key()),
                critical=False,
            )
            .add_extension(usage(key_cert_sign=True, crl_sign=True), critical=True)
        )
        return builder.sign(self.root_key, hashes.SHA256())

    def sign(
        self,
        csr: x509.CertificateSigningRequest,
        *,
        subject: x509.Name | None = None,
        key: Any = None,
        san: list[x509.GeneralName] | None = None,
        lifetime: dt.timedelta = DAY,
        backdated: dt.timedelta = dt.timedelta(minutes=1),
        ca: bool = False,
        key_usage: x509.KeyUsage | None = None,
        purposes: tuple[x509.ObjectIdentifier, ...] | None = (ExtendedKeyUsageOID.CLIENT_AUTH,),
        serial_number: int | None = None,
        signer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None = None,
        critical: bool = False,
        further: tuple[x509.ExtensionType, ...] = (),
    ) -> x509.Certificate:
        """A certificate for a CSR; the arguments make it another one than asked for."""
        issuer, issuer_key = signer or (self.certificate, self.key)
        now = dt.datetime.now(dt.UTC)
        if san is None:
            with contextlib.suppress(x509.ExtensionNotFound):
                san = list(
                    csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
                )
        builder = (
            x509.CertificateBuilder()
            .subject_name(csr.subject if subject is None else subject)
            .issuer_name(issuer.subject)
            .public_key(key or csr.public_key())
            .serial_number(serial_number or x509.random_serial_number())
            .not_valid_before(now - backdated)
            .not_valid_after(now - backdated + lifetime)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
                critical=False,
            )
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key or csr.public_key()), critical=False
            )
        )
        builder = builder.add_extension(key_usage or usage(digital_signature=True), critical=True)
        if purposes is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        if san:
            builder = builder.add_extension(x509.SubjectAlternativeName(san), critical=False)
        if critical:
            oid = x509.ObjectIdentifier("1.3.6.1.4.1.99999.1")
            builder = builder.add_extension(
                x509.UnrecognizedExtension(oid, b"\x05\x00"), critical=True
            )
        for extension in further:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(issuer_key, hashes.SHA256())

    async def issue(self, _: web.Request, octets: bytes, **changes: Any) -> web.StreamResponse:
        """What a CA should do."""
        certificate = self.sign(x509.load_der_x509_csr(octets), **changes)
        self.issued.append(certificate)
        return certs_only(certificate)

    def doing(self, **changes: Any) -> Behaviour:
        """Issue, but another certificate than asked for."""

        async def behave(request: web.Request, octets: bytes) -> web.StreamResponse:
            return await self.issue(request, octets, **changes)

        return behave

    def answering(self, status: int, text: str = "", **headers: str) -> Behaviour:
        """Issue nothing and say so."""

        async def behave(_: web.Request, __: bytes) -> web.StreamResponse:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return web.Response(status=status, text=text, headers=named)

        return behave

    async def silent(self, request: web.Request, octets: bytes) -> web.StreamResponse:
        """Issue, then cut the connection instead of answering: the answer that got lost."""
        await self.issue(request, octets)
        assert request.transport is not None
        request.transport.abort()
        await asyncio.sleep(0.05)
        return web.Response(status=500)

    async def _enroll(self, request: web.Request) -> web.StreamResponse:
        octets = b64decode(await request.read())
        self.seen.append(octets)
        assert request.transport is not None
        peer = request.transport.get_extra_info("peercert")
        self.peers.append("" if not peer else dict(rdn[0] for rdn in peer["subject"])["commonName"])
        return await (self.behaviour or self.issue)(request, octets)

    async def _cacerts(self, _: web.Request) -> web.StreamResponse:
        if self.unavailable:
            return web.Response(status=503)
        return certs_only(self.certificate, self.root)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[OtherCA]:
        """Serve for as long as the context lasts."""
        app = web.Application()
        app.router.add_post("/.well-known/est/corp/simpleenroll", self._enroll)
        app.router.add_get("/.well-known/est/corp/cacerts", self._cacerts)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path("server.pem"), self.path("server.key"))
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self.path("root.pem"))
        context.load_verify_locations(self.path("issuing.pem"))
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, "localhost", self.port, ssl_context=context)
        await site.start()
        try:
            yield self
        finally:
            await runner.cleanup()


def usage(**set_bits: bool) -> x509.KeyUsage:
    names = [
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    ]
    return x509.KeyUsage(**{name: set_bits.get(name, False) for name in names})


def certs_only(*certificates: x509.Certificate) -> web.Response:
    body = b64encode(pkcs7.serialize_certificates(list(certificates), Encoding.DER))
    return web.Response(body=body, content_type="application/pkcs7-mime")
