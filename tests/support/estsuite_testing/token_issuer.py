"""An issuer of tokens for tests: keys of its own and a real HTTPS server for its key set.

Tokens are put together from octets, so that a test can spell them wrong in any way; no JOSE
library takes part in making them.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import functools
import ipaddress
import json
import os
import ssl
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID

from est_frontend.auth.tokens.access_token import TokenValidator
from est_frontend.auth.tokens.jwks import KeySource
from est_frontend.settings import TokenIssuerSettings
from estcore.clock import Clock
from estcore.errors import IssuerUnavailable, NotAuthenticated
from estcore.testing.clock import FakeClock

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
ISSUER = "https://sso.clinic.example/realms/est"
ALGORITHM_OF = {"rsa": "RS256", "pss": "PS256", "ec": "ES256", "p384": "ES384", "ed": "EdDSA"}
_CURVES: dict[str, ec.EllipticCurve] = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1()}


@functools.cache
def private_key(name: str) -> PrivateKey:
    """A key by its name; the beginning of the name says of which kind: rsa, pss, ec, p384, ed."""
    match name.partition("-")[0]:
        case "rsa" | "pss":
            return rsa.generate_private_key(public_exponent=65537, key_size=2048)
        case "short":
            return rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 - to be refused
        case "ec":
            return ec.generate_private_key(ec.SECP256R1())
        case "p384":
            return ec.generate_private_key(ec.SECP384R1())
        case _:
            return ed25519.Ed25519PrivateKey.generate()


def b64(octets: bytes) -> str:
    return urlsafe_b64encode(octets).rstrip(b"=").decode()


def number(value: int, length: int | None = None) -> str:
    return b64(value.to_bytes(length or (value.bit_length() + 7) // 8, "big"))


def jwk(key: PrivateKey) -> dict[str, Any]:
    """The public half as a JWK."""
    public = key.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        numbers = public.public_numbers()
        return {"kty": "RSA", "n": number(numbers.n), "e": number(numbers.e)}
    if isinstance(public, ec.EllipticCurvePublicKey):
        size = (public.key_size + 7) // 8
        x, y = public.public_numbers().x, public.public_numbers().y
        return {
            "kty": "EC",
            "crv": f"P-{public.key_size}",
            "x": number(x, size),
            "y": number(y, size),
        }
    return {"kty": "OKP", "crv": "Ed25519", "x": b64(public.public_bytes_raw())}


def thumbprint(key: PrivateKey) -> str:
    """RFC 7638."""
    return b64(
        sha256(json.dumps(jwk(key), sort_keys=True, separators=(",", ":")).encode()).digest()
    )


def public_pem(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def signature(key: PrivateKey, data: bytes, *, pss: bool = False) -> bytes:
    if isinstance(key, rsa.RSAPrivateKey):
        scheme = padding.PSS(padding.MGF1(hashes.SHA256()), 32) if pss else padding.PKCS1v15()
        return key.sign(data, scheme, hashes.SHA256())
    if isinstance(key, ec.EllipticCurvePrivateKey):
        size = (key.key_size + 7) // 8
        digest = hashes.SHA256() if size == 32 else hashes.SHA384()
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(digest)))
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")
    return key.sign(data)


def compact(
    header: dict[str, Any] | str, payload: dict[str, Any] | str, sign: Callable[[bytes], bytes]
) -> str:
    """A compact JWS of these octets; a text stands for itself."""
    parts = [p if isinstance(p, str) else json.dumps(p) for p in (header, payload)]
    signed = ".".join(b64(part.encode()) for part in parts)
    return f"{signed}.{b64(sign(signed.encode()))}"


def now_s(clock: Clock) -> int:
    return int(clock.now().timestamp())


@dataclass
class TestIssuer:
    """Issues tokens, publishes keys, and misbehaves on request."""

    __test__ = False
    folder: Path
    issuer: str = ISSUER
    id: str = "keycloak"
    audience: str = "est"
    clock: Clock = field(default_factory=FakeClock)
    published: list[str] = field(default_factory=lambda: ["rsa-1", "ec-1", "ed-1", "pss-1"])
    fetches: int = 0
    answer: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None
    port: int = 0
    _runner: web.AppRunner | None = None

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Of an access token as Keycloak issues it; None removes a claim."""
        now = now_s(self.clock)
        claims = {
            "iss": self.issuer, "aud": ["est", "account"], "sub": "5f6c", "azp": "clinic-web",
            "exp": now + 300, "iat": now, "jti": "trrtcc:1", "typ": "Bearer",
            "resource_access": {"est": {"roles": ["service-mtls"]}},
        }  # fmt: skip
        return {k: v for k, v in (claims | changes).items() if v is not None}

    def token(
        self, kid: str = "ec-1", *, header: dict[str, Any] | None = None, **changes: Any
    ) -> str:
        """A good token by the key of that name; ``header`` and the rest change one thing."""
        kind = kid.partition("-")[0]
        head = {"alg": ALGORITHM_OF[kind], "typ": "JWT", "kid": kid} | (header or {})
        head = {k: v for k, v in head.items() if v is not None}
        return compact(head, self.claims(**changes), self.signer(kid))

    def signer(self, name: str) -> Callable[[bytes], bytes]:
        return lambda data: signature(private_key(name), data, pss=name.startswith("pss"))

    def settings(self, **changes: Any) -> TokenIssuerSettings:
        raw = {
            "id": self.id, "issuer": self.issuer, "audience": self.audience,
            "jwks_url": f"https://127.0.0.1:{self.port}/certs", "ca_file": self.ca_file,
            "algorithms": ("RS256", "PS256", "ES256", "ES384", "EdDSA"),
        }  # fmt: skip
        return TokenIssuerSettings.model_validate(raw | changes)

    @property
    def ca_file(self) -> Path:
        return self.folder / f"{self.id}.pem"

    def key_set(self) -> dict[str, Any]:
        return {"keys": [{"kid": k, "use": "sig", **jwk(private_key(k))} for k in self.published]}

    async def start(self) -> None:
        """Serve the key set, with a certificate that only ``ca_file`` makes believable."""
        key_file = self.folder / f"{self.id}.key"
        if not key_file.exists():
            self_signed(self.ca_file, key_file)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.ca_file, key_file)
        app = web.Application()
        app.router.add_get("/{any:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=context).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.fetches += 1
        if self.answer is not None:
            return await self.answer(request)
        return web.json_response(self.key_set())


def self_signed(certificate_file: Path, key_file: Path, host: str = "localhost") -> None:
    """A server's own certificate for a host; trusted where it is named as root."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = dt.datetime.now(dt.UTC)
    san = [x509.DNSName(host), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(san), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_file.write_bytes(certificate.public_bytes(Encoding.PEM))
    key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


@contextlib.asynccontextmanager
async def serving(folder: Path, **changes: Any) -> AsyncIterator[TestIssuer]:
    issuer = TestIssuer(folder, **changes)
    await issuer.start()
    try:
        yield issuer
    finally:
        await issuer.stop()


@contextlib.asynccontextmanager
async def running(source: KeySource) -> AsyncIterator[KeySource]:
    """The source with its job, as a front end runs it."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(source.run(stop))
        try:
            yield source
        finally:
            stop.set()


@contextlib.asynccontextmanager
async def validating(*issuers: TestIssuer, **settings: Any) -> AsyncIterator[TokenValidator]:
    """A validator for these issuers whose keys are there."""
    async with contextlib.AsyncExitStack() as open_:
        found = {}
        for one in issuers:
            mine = one.settings(**settings)
            source = await open_.enter_async_context(running(KeySource(mine, one.folder)))
            found[one.issuer] = (mine, source)
            await until_true(functools.partial(_is_ready, source))
        yield TokenValidator(found, issuers[0].clock)


def _is_ready(source: KeySource) -> bool:
    return source.ready


async def answered(answer: web.StreamResponse) -> web.StreamResponse:
    return answer


async def refusal(validator: TokenValidator, token: str) -> str:
    """The code a token is refused with; the reason must not repeat the token."""
    with pytest.raises((NotAuthenticated, IssuerUnavailable)) as caught:
        await validator.validate(token)
    assert not any(part in caught.value.reason for part in token.split(".") if len(part) > 20)
    return caught.value.code


async def until_true(condition: Callable[[], bool], *, timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


def dpop_proof(
    key_name: str, token: str | None, url: str, clock: Clock, *, method: str = "POST",
    header: dict[str, Any] | None = None, **changes: Any,
) -> str:  # fmt: skip
    """A proof of RFC 9449 by the key of that name; keyword arguments change one thing."""
    key = private_key(key_name)
    algorithm = ALGORITHM_OF[key_name.partition("-")[0]]
    head = {"typ": "dpop+jwt", "alg": algorithm, "jwk": jwk(key)} | (header or {})
    claims = {"jti": os.urandom(8).hex(), "htm": method, "htu": url, "iat": now_s(clock)}
    if token is not None:
        claims["ath"] = b64(sha256(token.encode()).digest())
    kept = {k: v for k, v in (claims | changes).items() if v is not None}
    return compact(
        {k: v for k, v in head.items() if v is not None},
        kept,
        lambda data: signature(key, data, pss=key_name.startswith("pss")),
    )
